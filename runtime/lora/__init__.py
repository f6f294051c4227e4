"""LoRAs at run time: read, matched with the layers of a network, and handed to it as inputs."""
