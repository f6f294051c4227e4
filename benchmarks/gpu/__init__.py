"""What is measured on a GPU; each module is a command that writes one record."""
