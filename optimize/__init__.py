"""Graphs made faster: rewriting, tuning, calibration, and what is stored of it; never torch."""
