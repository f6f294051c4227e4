"""How files on disk are written, identified and read."""
