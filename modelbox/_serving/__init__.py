"""What every serving program of ModelBox needs: sockets, signals, a guarded gRPC server, drains, settings.

Shared by the central server (`modelbox.runtime`) and the sidecar (`modelbox.sidecar`), which do not know each other.
Knows no service and no store.
"""
