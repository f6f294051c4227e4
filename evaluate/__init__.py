"""How well a bundle draws: the published protocol of BK-SDM, and one that runs anywhere."""
