"""The networks that measure, with random weights, beside the programs that made the card."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from bksdm.engines.errors import RequestError

pytest.importorskip("open_clip")
pytest.importorskip("torch_fidelity")

import open_clip
import torch

from bksdm.evaluate.networks import Weights

from .weights import CLIP, write_weights

PROMPT = "a dog on a blue background " * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights")
    write_weights(path)
    return path


@pytest.fixture(scope="module")
def weights(folder):
    return Weights(folder / "inception.pt", folder / "clip.pt", CLIP)


@pytest.fixture(scope="module")
def networks(weights):
    return weights.load(threads=1)


@pytest.fixture(scope="module")
def picture():
    drawn = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return Image.fromarray(drawn).resize((256, 256))


def test_features_are_those_of_pytorch_fid(networks, folder, picture, monkeypatch):
    """The same network, of the same weights; torch-fidelity's differs by how it resizes."""
    inception = pytest.importorskip("pytorch_fid.inception")
    state = torch.load(folder / "inception.pt", weights_only=True)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda url, progress: state)
    theirs = inception.InceptionV3().eval()
    from torchvision.transforms.functional import to_tensor

    with torch.inference_mode():
        (expected,) = theirs(to_tensor(picture)[None])
    expected = expected[0, :, 0, 0].numpy()
    found = networks(picture, "a dog").features
    # Of the same operations, in blocks of other sizes.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert expected.std() > 0


def test_logits_are_those_of_torch_fidelity(networks, folder, picture):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3(
        "inception", ["logits_unbiased"], str(folder / "inception.pt")
    )
    levels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    np.testing.assert_array_equal(networks(picture, "a dog").logits, theirs(levels)[0][0].numpy())


@pytest.mark.parametrize("prompt", ["a dog", PROMPT])
def test_similarity_is_that_of_the_cards_script(networks, folder, picture, prompt):
    """Longer prompts are cut off by open_clip's tokenizer."""
    model, _, view = open_clip.create_model_and_transforms(CLIP, str(folder / "clip.pt"))
    with torch.inference_mode():
        image = model.eval().encode_image(view(picture)[None])
        text = model.encode_text(open_clip.get_tokenizer(CLIP)([prompt]))
    expected = torch.nn.functional.cosine_similarity(image, text).item()
    assert networks(picture, prompt).similarity == pytest.approx(expected, abs=1e-6)


def test_a_picture_has_the_same_measures_again(networks, picture):
    a, b = networks(picture, "a dog"), networks(picture, "a dog")
    np.testing.assert_array_equal(a.features, b.features)
    assert a.similarity == b.similarity


def test_what_measures_is_described_by_its_content(weights, folder):
    described = weights.described()
    assert described["clip_model"] == CLIP
    assert len(described["inception"]) == len(described["clip_weights"]) == 64
    assert described["torch"]
    usual = Weights().described()
    assert usual["clip_weights"] == "laion2b_s34b_b88k"
    # What is downloaded by default has to be known to open_clip.
    assert usual["clip_weights"] in open_clip.list_pretrained_tags_by_model(usual["clip_model"])


def test_other_weights_are_refused(folder, tmp_path):
    (tmp_path / "text.pt").write_text("no weights")
    both = {"inception": folder / "inception.pt", "clip": folder / "clip.pt", "clip_model": CLIP}
    for name in ("inception", "clip"):
        other = "clip.pt" if name == "inception" else "inception.pt"
        for file in (tmp_path / "text.pt", folder / other):
            with pytest.raises(RequestError, match=r"\.pt: not ") as found:
                Weights(**{**both, name: file}).load()
            assert "\n" not in str(found.value)
        with pytest.raises(RequestError, match="cannot be read"):
            Weights(**{**both, name: tmp_path / "missing.pt"}).described()
    with pytest.raises(RequestError, match="open_clip has no model 'ViT-X'"):
        Weights(clip_model="ViT-X").described()
    with pytest.raises(RequestError, match=r"needs its weights: --clip FILE"):
        Weights(clip_model=CLIP).described()
