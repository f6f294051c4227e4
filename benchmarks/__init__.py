"""Latency, statistics and rooflines; every figure comes with its machine."""
