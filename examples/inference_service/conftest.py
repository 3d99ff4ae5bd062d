"""Marks the root of this project, so that its tests find `speech_service` from wherever they are started."""
