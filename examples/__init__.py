"""Programs that show ModelBox in use. A package, so that no other `examples` on the path comes before it."""
