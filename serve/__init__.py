"""Serve pictures over HTTP: requests join and leave between the steps of one UNet batch."""
