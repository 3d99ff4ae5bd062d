"""Copies of everything that a server keeps: written as a directory, verified, and read into another database.

See docs/adr/0013-export-and-import.md. Knows stores and blobs, and no server: it works beside one, or without.
"""
