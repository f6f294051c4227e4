"""Checkpoints of the hub, as far as that can be seen without it."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
from diffusers import DiffusionPipeline
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from bksdm.cli import main
from bksdm.engines.errors import ExportError
from bksdm.export.quiet import quiet
from bksdm.export.source import resolve

HUB_ID, COMMIT = "owner/name", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(nano_checkpoint, tmp_path, monkeypatch):
    """The hub's cache with a snapshot of the nano checkpoint, and no way to the hub."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = cache / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(p for p in nano_checkpoint.rglob("*") if p.is_file())):
        blob = repository / "blobs" / f"{number:040}"
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(nano_checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return snapshot


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_without_the_hub_its_cache_has_to_do_as_for_diffusers(cache, revision):
    lines = []
    assert resolve(HUB_ID, revision, report=lines.append) == cache
    (line,) = lines
    assert "taken from its cache" in line
    with quiet():
        assert str(cache) == str(DiffusionPipeline.download(HUB_ID, revision=revision))


def test_what_the_cache_lacks_is_refused_in_one_line(cache, tmp_path, capsys):
    for arguments in (
        ["other/name"],
        [HUB_ID, "--revision", "v2"],
        [HUB_ID, "--token", "x", "--revision", "v2"],
    ):
        assert main(["export", *arguments, "-o", str(tmp_path / "bundle")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "cannot be fetched from the hub" in line
    (cache / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert main(["export", HUB_ID, "-o", str(tmp_path / "bundle")]) == 2
    assert "unet: no weights found" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


class Unreachable(Exception):
    """As what the transport of the hub's client raises, which is no OSError."""


@pytest.fixture
def hub(nano_checkpoint, tmp_path, monkeypatch):
    """A hub that has what is put into ``files``, and records what is asked of it."""
    hub = SimpleNamespace(files=[], asked=[], tokens=[], fails={})
    hub.folder = tmp_path / "snapshots" / COMMIT
    shutil.copytree(nano_checkpoint, hub.folder)
    hub.files += [f.relative_to(hub.folder).as_posix() for f in hub.folder.rglob("*.*")]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def download(hub_id, revision=None, token=None, allow_patterns=None):
        hub.asked.append((revision, allow_patterns))
        hub.tokens.append(token)
        if len(hub.asked) in hub.fails:
            raise hub.fails[len(hub.asked)]
        return str(hub.folder)

    def model_info(self, hub_id, revision=None):
        hub.tokens.append(self.token)
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=f) for f in hub.files])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    return hub


def test_small_files_come_first_and_then_weights_of_the_same_commit(hub):
    hub.files += ["safety_checker/model.safetensors", "unet/diffusion_pytorch_model.bin", "a.ckpt"]
    assert resolve(HUB_ID, "v1", token="secret") == hub.folder
    (first, small), (second, weights) = hub.asked
    assert (first, second) == ("v1", COMMIT)
    assert "*/config.json" in small
    assert weights == [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "safety_checker/model.safetensors",
    ]
    assert hub.tokens == ["secret"] * 3


def test_a_sharded_unet_and_variants_are_fetched(hub):
    stem = "unet/diffusion_pytorch_model"
    shards = [f"{stem}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    hub.files.remove(f"{stem}.safetensors")
    hub.files += [*shards, f"{stem}.safetensors.index.json", f"{stem}.fp16.safetensors"]
    resolve(HUB_ID)
    assert [f for f in hub.asked[1][1] if "unet" in f] == [
        f"{stem}.safetensors.index.json",
        *shards,
    ]
    with pytest.raises(ExportError, match="no weights of variant 'ema'; known: fp16"):
        resolve(HUB_ID, variant="ema")
    hub.asked.clear()
    (hub.folder / f"{stem}.safetensors").rename(hub.folder / f"{stem}.fp16.safetensors")
    lines = []
    resolve(HUB_ID, variant="fp16", report=lines.append)
    half, *others = hub.asked[1][1]
    assert half == f"{stem}.fp16.safetensors"
    assert not any("fp16" in file for file in others)
    assert lines == []


def test_an_unsupported_checkpoint_is_refused_before_its_weights_are_fetched(hub):
    path = hub.folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "in_channels": 9}))
    with pytest.raises(ExportError, match="inpainting"):
        resolve(HUB_ID)
    hub.files.remove("model_index.json")
    path.write_text(path.read_text().replace('"in_channels": 9', '"in_channels": 4'))
    with pytest.raises(ExportError, match=r"owner/name has no model_index\.json on the hub"):
        resolve(HUB_ID)
    assert len(hub.asked) == 2


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize(
    ("error", "named"),
    [
        (Unreachable("[Errno -2] Name or service not known\nmore"), "check the connection"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (type("GatedRepoError", (Unreachable,), {})("403\n\nAccess"), "accept its conditions"),
        (type("RepositoryNotFoundError", (Unreachable,), {})("404"), "check the name"),
        (type("RevisionNotFoundError", (Unreachable,), {})("404"), "no such revision"),
    ],
)
def test_what_the_hub_says_is_told_in_one_line(hub, tmp_path, capsys, call, error, named):
    hub.fails[call] = error
    assert main(["export", HUB_ID, "-o", str(tmp_path / "bundle")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert HUB_ID in line
    assert named in line


def test_the_names_of_the_hubs_errors_are_those_that_are_advised_on():
    from bksdm.export.hub import _ADVICE

    for name in _ADVICE:
        assert issubclass(getattr(huggingface_hub.errors, name), HfHubHTTPError)
