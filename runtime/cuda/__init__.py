"""The diffusion loop on the GPU: between the prompt and the pixels the host waits for nothing."""
