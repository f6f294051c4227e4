"""Export a diffusers checkpoint to a bundle: ONNX graphs, precision, parity report."""
