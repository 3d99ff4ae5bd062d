"""The Unix socket for ModelBox's own client: frames, shared memory, leases; `SocketServer` is its front."""
