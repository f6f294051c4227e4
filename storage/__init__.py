"""What lies on disk: how files are written, identified and read."""
