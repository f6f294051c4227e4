"""Every kind of damage to a bundle, and to what was made of it, is found."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

from bksdm.cli import main
from bksdm.engines.errors import BundleError
from bksdm.engines.registry import version_of
from bksdm.models import EMOJI
from bksdm.optimize.rules import USUAL
from bksdm.optimize.tuned import Tuned, write_tuned
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.integrity import SUMS, find_damage
from bksdm.runtime.pipeline import TextToImage
from bksdm.storage.places import ENGINES, engines_folder


@pytest.fixture(scope="module")
def whole(nano_bundle, tmp_path_factory):
    """A bundle that has been run and tuned."""
    folder = tmp_path_factory.mktemp("whole") / "nano"
    shutil.copytree(nano_bundle, folder, ignore=shutil.ignore_patterns("engines"))
    TextToImage.load(folder, threads=1)
    models = {name: Bundle.open(folder).model(name) for name in Bundle.open(folder).components}
    measured = {name: {"onnxruntime": Tuned(0.1, USUAL)} for name in models}
    write_tuned(folder / "engines", models, measured, {"threads": 1}, version_of)
    return folder


@pytest.fixture
def bundle(whole, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(whole, folder)
    return folder


def test_a_whole_bundle_is_whole(bundle, capsys):
    assert len(list(bundle.glob("engines/**/model.onnx"))) == 3
    assert find_damage(bundle) == []
    assert main(["verify", "--integrity", str(bundle)]) == 0
    assert "every file is what was exported" in capsys.readouterr().out


def test_the_built_in_model_is_whole():
    assert find_damage(EMOJI) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="another place for caches")
def test_what_lies_in_the_users_cache_is_the_bundles(tmp_path, monkeypatch, capsys):
    """The built-in model is part of the package, where nothing is written."""
    TextToImage.load(EMOJI, threads=1)
    stored = engines_folder(EMOJI)
    copied = tmp_path / "bksdm" / ENGINES / stored.name
    shutil.copytree(stored, copied)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_damage(EMOJI) == []
    graph = min(copied.glob("*/unet-*/model.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1])
    name = graph.relative_to(copied.parent)
    assert main(["verify", "--integrity", "emoji"]) == 1
    out, err = capsys.readouterr()
    assert out == f"{name}: differs from what was written\n"
    assert "mended by `bksdm build BUNDLE --engine NAME`" in err
    entry = graph.parent.relative_to(copied).as_posix()
    assert main(["build", "emoji", "--list"]) == 0
    assert entry in capsys.readouterr().out.split()
    assert main(["build", "emoji", "--remove", "nothing"]) == 2
    err = capsys.readouterr().err
    assert "'nothing' is not built; built: " in err
    assert entry in err
    assert main(["build", "emoji", "--remove", entry]) == 0
    assert not graph.parent.exists()
    assert find_damage(EMOJI) == []


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_the_sums_are_those_of_sha256sum(bundle):
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=bundle, check=True)


def flip(file, rng):
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def overwrite(file, rng):
    content = bytearray(file.read_bytes())
    start = rng.randrange(len(content))
    part = bytes(rng.randbytes(min(64, len(content) - start)))
    # Not what stood there.
    content[start : start + len(part)] = bytes(b ^ 0x55 for b in content[start:][: len(part)])
    file.write_bytes(content)


def truncate(file, rng):
    os.truncate(file, rng.randrange(file.stat().st_size))


def extend(file, rng):
    with file.open("ab") as stream:
        stream.write(rng.choice([b"\n", b" ", b"\0", b"more"]))


def empty(file, rng):
    file.write_bytes(b"")


def remove(file, rng):
    file.unlink()


def become_a_folder(file, rng):
    file.unlink()
    file.mkdir()


def become_a_link_to_nothing(file, rng):
    file.unlink()
    file.symlink_to("nothing")


def become_a_pipe(file, rng):
    file.unlink()
    os.mkfifo(file)


def rename(file, rng):
    file.rename(file.with_name("renamed" + file.suffix))


def be_copied(file, rng):
    shutil.copyfile(file, file.with_name("copy-" + file.name))


def be_swapped(file, rng):
    others = [f for f in sorted(file.parent.parent.rglob("*")) if f.is_file() and f != file]
    other = next(f for f in others if f.read_bytes() != file.read_bytes())
    content = file.read_bytes()
    shutil.copyfile(other, file)
    other.write_bytes(content)


DAMAGE = [
    flip,
    overwrite,
    truncate,
    extend,
    empty,
    remove,
    become_a_folder,
    become_a_link_to_nothing,
    become_a_pipe,
    rename,
    be_copied,
    be_swapped,
]


@pytest.mark.parametrize("count", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_no_damage_is_missed(whole, tmp_path, capsys, count):
    rng = random.Random(0)
    names = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    missed = []
    for number in range(count):
        kind, name = DAMAGE[number % len(DAMAGE)], rng.choice(names)
        in_engines = name.parts[0] == "engines"
        if (in_engines and kind in (remove, rename, be_copied)) or name.name == SUMS:
            # What was made can be removed or copied; the sums are a test of their own.
            kind = flip
        bundle = tmp_path / str(number)
        shutil.copytree(whole, bundle, copy_function=os.link)
        for linked in (p for p in bundle.rglob("*") if p.is_file()):
            if linked == bundle / name or kind is be_swapped:
                content = linked.read_bytes()
                linked.unlink()
                linked.write_bytes(content)
        kind(bundle / name, rng)
        code = main(["verify", "--integrity", str(bundle)])
        if code != 1:
            missed.append((kind.__name__, str(name), code))
        shutil.rmtree(bundle)
    said = capsys.readouterr()
    assert missed == []
    # Nothing but the word of what to do.
    assert {line.partition(";")[0] for line in said.err.splitlines()} == {"export the bundle anew"}


@pytest.mark.parametrize("kind", [flip, overwrite, truncate, extend, empty])
def test_damage_to_the_sums_is_found(bundle, kind):
    content = (bundle / SUMS).read_bytes()
    for seed in range(40):
        kind(bundle / SUMS, random.Random(seed))
        assert find_damage(bundle), seed
        (bundle / SUMS).write_bytes(content)


def test_a_line_that_leads_out_of_the_bundle_is_damage(bundle):
    (bundle.parent / "secret").write_text("secret")
    with (bundle / SUMS).open("a") as stream:
        stream.write(f"{'0' * 64}  ../secret\n{'0' * 64}  /etc/hostname\n")
    assert [p.partition(":")[0] for p in find_damage(bundle)] == [SUMS, SUMS]


def test_a_file_that_was_added_is_named(bundle):
    (bundle / "tokenizer" / "added_tokens.json").write_text("{}")
    assert find_damage(bundle) == ["tokenizer/added_tokens.json: is no part of the export"]


def test_a_bundle_without_sums_says_so(bundle, capsys):
    (bundle / SUMS).unlink()
    with pytest.raises(BundleError, match="SHA256SUMS: missing"):
        find_damage(bundle)
    assert main(["verify", "--integrity", str(bundle)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_weight_that_changed_is_another_model(bundle):
    """One bit of one weight, its file's size and times as before."""
    model = TextToImage.load(bundle, threads=1)
    options = {"num_inference_steps": 2, "seed": 0}
    before, digest = model("a", **options).pixels, model.bundle.digest()
    weights = bundle / "unet" / "model.onnx.data"
    state, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 0x40
    weights.write_bytes(content)
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    model = TextToImage.load(bundle, threads=1)
    assert model.bundle.digest() != digest
    assert not np.array_equal(model("a", **options).pixels, before)
    assert find_damage(bundle) == ["unet/model.onnx.data: differs from what was written"]
