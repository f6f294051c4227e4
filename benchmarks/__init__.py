"""Measure latency, throughput and rooflines, and record the machine with every figure."""
