"""Diffusers checkpoint to bundle: ONNX graphs, precision, parity report."""
