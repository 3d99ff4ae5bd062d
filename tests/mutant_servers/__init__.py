"""Servers with one planted bug each, to prove that the checks of several servers find such a thing.

Each is a module for ``python -m``; it changes one function and starts the server.
"""
