"""Make graphs faster: rewriting, tuning, calibration and stored graphs; never imports torch."""
