"""The way to the central server: gRPC for calls and watches, HTTP for bytes. Runs on the engine's asyncio loop only."""
