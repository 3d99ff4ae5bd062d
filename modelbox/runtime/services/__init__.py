"""Use cases of the server; they know neither gRPC, HTTP nor SQL."""
