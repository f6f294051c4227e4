"""Files of random weights for Inception and a small CLIP, where none can be downloaded."""

from __future__ import annotations

import pytest

CLIP = "ViT-S-32-alt"
"""The smallest that open_clip knows."""


def write_weights(folder):
    """Write ``inception.pt`` and ``clip.pt``; return the flags that name them."""
    import open_clip
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as module

    class Untrained(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, weights):
            return None

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda url, progress: None)
        inception = Untrained("inception", ["2048"])
    for name, weight in inception.named_parameters():
        # So that what flows through has the same size everywhere, and pictures differ.
        if weight.dim() > 1:
            torch.nn.init.kaiming_normal_(weight)
        assert torch.isfinite(weight).all(), name
    torch.save(inception.state_dict(), folder / "inception.pt")
    torch.save(open_clip.create_model(CLIP).state_dict(), folder / "clip.pt")
    return (
        *("--inception", folder / "inception.pt"),
        *("--clip", folder / "clip.pt", "--clip-model", CLIP),
    )
