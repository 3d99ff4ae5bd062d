"""The central server: registry, artifacts, change feed and fleet behind gRPC and HTTP.

A program, not a library: nothing imports it. Adapters call `services`, services see `ports`, stores and blobs
implement these; `app` wires them.
"""
