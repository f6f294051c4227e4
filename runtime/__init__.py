"""Prompt to image with numpy and an engine; never imports torch, diffusers or transformers."""
