"""ModelBox's own protocol over a Unix socket."""
