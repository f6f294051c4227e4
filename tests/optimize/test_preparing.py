"""Optimised graphs on disk: found by content, whole or made anew, safe beside other processes."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bksdm.cli import main
from bksdm.engines import onnxruntime as backend
from bksdm.engines.errors import EngineError
from bksdm.engines.onnxruntime import OnnxRuntimeEngine
from bksdm.models import EMOJI
from bksdm.optimize import preparing
from bksdm.storage import digest
from bksdm.storage.files import PARTIAL

X = np.random.default_rng(1).standard_normal((1, 16, 8, 8)).astype(np.float32)


def save_model(path, seed=0):
    """Write a convolution, which the optimiser stores in another layout, and a product."""
    random = np.random.default_rng(seed)
    weights = {
        "conv.weight": random.standard_normal((32, 16, 3, 3)),
        "proj.weight": random.standard_normal((8, 512)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "proj.weight"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 16, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 32, 8, 512])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.with_name("model.onnx.data").unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "bundle" / "unet" / "model.onnx"
    save_model(path)
    return path


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "bundle" / "engines"


def run(model, cache=None):
    return OnnxRuntimeEngine(model, cache=cache)({"x": X})["y"]


def saved(cache):
    return sorted(cache.glob("graphs-*/*"))


@pytest.fixture(autouse=True)
def nothing_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_it_is_saved_once_and_gives_the_same(model, cache):
    plain = run(model)
    np.testing.assert_array_equal(run(model, cache), plain)
    (folder,) = saved(cache)
    stamp = (folder / "model.onnx").stat().st_mtime_ns
    np.testing.assert_array_equal(run(model, cache), plain)
    assert saved(cache) == [folder]
    assert (folder / "model.onnx").stat().st_mtime_ns == stamp
    assert sorted(p.name for p in folder.iterdir()) == [
        "engine.json",
        "model.onnx",
        "model.onnx.data",
    ]


def test_a_weight_that_did_not_change_is_stored_once(model, cache):
    run(model, cache)
    (folder,) = saved(cache)
    proto = onnx.load(folder / "model.onnx", load_external_data=False)
    places = {
        weight.name: {entry.key: entry.value for entry in weight.external_data}["location"]
        for weight in proto.graph.initializer
        if weight.data_location == TensorProto.EXTERNAL
    }
    assert places.pop("proj.weight") == "unet/model.onnx.data"
    # The convolution's filters, in ONNX Runtime's own layout.
    assert set(places.values()) == {f"engines/{folder.parent.name}/{folder.name}/model.onnx.data"}
    assert (folder / "model.onnx.data").stat().st_size <= 32 * 16 * 9 * 4 + 64


def test_a_bundle_takes_its_graphs_along(model, cache, tmp_path, monkeypatch):
    expected = run(model, cache)
    bundle = model.parents[1].rename(tmp_path / "moved")
    # Nothing can be prepared.
    monkeypatch.setitem(sys.modules, "bksdm.optimize.preparing", None)
    np.testing.assert_array_equal(run(bundle / "unet" / model.name, bundle / "engines"), expected)


def test_graphs_in_another_place_name_their_weights_in_full(model, tmp_path):
    cache = tmp_path / "elsewhere" / "cache"
    expected = run(model, cache)
    (folder,) = saved(cache)
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    stated = {entry.value for weight in graph.initializer for entry in weight.external_data}
    assert model.with_name("model.onnx.data").resolve().as_posix()[1:] in stated
    np.testing.assert_array_equal(run(model, cache), expected)
    assert saved(cache) == [folder]
    # Elsewhere the same content is prepared anew, for the names would not hold there.
    moved = model.parents[1].rename(tmp_path / "moved") / "unet" / model.name
    np.testing.assert_array_equal(run(moved, cache), expected)
    assert len(saved(cache)) == 2


@pytest.mark.parametrize("file", ["model.onnx", "model.onnx.data"])
def test_another_model_of_the_same_size_and_times_is_another(model, cache, tmp_path, file):
    run(model, cache)
    other = tmp_path / "other" / "unet" / "model.onnx"
    save_model(other, seed=1)
    target = model.with_name(file)
    state = target.stat()
    if file == "model.onnx":
        # Another graph of as many bytes: a Neg in place of a Relu would be shorter.
        content = target.read_bytes()
        target.write_bytes(content.replace(b"Relu", b"Tanh"))
    else:
        shutil.copyfile(other.with_name(file), target)
    os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert target.stat().st_size == state.st_size
    expected = run(model)
    np.testing.assert_array_equal(run(model, cache), expected)
    assert len(saved(cache)) == 2


def test_digests_are_remembered_only_while_nothing_changes(model, cache, monkeypatch):
    monkeypatch.setattr(digest, "RECORD_FROM_BYTES", 0)
    monkeypatch.setattr(digest, "SETTLED_NS", 0)
    hashed = []
    whole = digest.sha256_of
    monkeypatch.setattr(digest, "sha256_of", lambda file: hashed.append(file.name) or whole(file))
    run(model, cache)
    assert set(hashed) == {"model.onnx", "model.onnx.data"}
    hashed.clear()
    run(model, cache)
    assert hashed == []
    weights = model.with_name("model.onnx.data")
    state = weights.stat()
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    # In place: the same file, size and times.
    weights.write_bytes(content)
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    run(model, cache)
    assert hashed[0] == "model.onnx.data"
    assert len(saved(cache)) == 2


def damage(folder, kind):
    data, graph = folder / "model.onnx.data", folder / "model.onnx"
    if kind == "no data":
        data.unlink()
    elif kind == "short data":
        os.truncate(data, 100)
    elif kind == "a folder for data":
        data.unlink()
        data.mkdir()
    elif kind == "a broken link":
        data.unlink()
        data.symlink_to("nowhere")
    elif kind == "a link in a circle":
        data.unlink()
        data.symlink_to(data)
    elif kind == "no graph":
        graph.unlink()
    elif kind == "half a graph":
        os.truncate(graph, graph.stat().st_size // 2)
    elif kind == "an empty folder":
        shutil.rmtree(folder)
        folder.mkdir()
    elif kind == "a file":
        shutil.rmtree(folder)
        folder.touch()
    elif kind == "a link":
        folder.rename(folder.with_name("elsewhere"))
        folder.symlink_to("nowhere")
    elif kind == "a pipe for a graph":
        graph.unlink()
        os.mkfifo(graph)


@pytest.mark.parametrize(
    "kind",
    [
        "no data",
        "short data",
        "a folder for data",
        "a broken link",
        "a link in a circle",
        "no graph",
        "half a graph",
        "an empty folder",
        "a file",
        "a link",
        "a pipe for a graph",
    ],
)
def test_a_damaged_one_is_made_anew(model, cache, kind):
    expected = run(model, cache)
    folder = saved(cache)[0]
    damage(folder, kind)
    np.testing.assert_array_equal(run(model, cache), expected)
    assert (folder / "model.onnx.data").is_file()
    stamp = (folder / "model.onnx").stat().st_mtime_ns
    np.testing.assert_array_equal(run(model, cache), expected)
    assert (folder / "model.onnx").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("where", ["staging", "writing", "folder"])
def test_a_full_disk_costs_time_only(model, cache, monkeypatch, where):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "staging":
        monkeypatch.setattr(preparing, "staged", full)
    elif where == "writing":
        monkeypatch.setattr(preparing, "_store_once", full)
    else:
        cache.touch()
    expected = run(model)
    with pytest.warns(UserWarning, match=r"unet: every start takes as long, .* cannot be stored"):
        np.testing.assert_array_equal(run(model, cache), expected)
    assert not list(cache.glob(f"**/{PARTIAL}*"))


def test_onnx_runtime_that_cannot_write_is_no_end(model, cache, monkeypatch):
    monkeypatch.setattr(
        backend, "_optimise", lambda graph, target: backend.open_session(graph, _into_nowhere())
    )
    with pytest.warns(UserWarning, match="cannot be stored"):
        np.testing.assert_array_equal(run(model, cache), run(model))


def _into_nowhere():
    options = ort.SessionOptions()
    options.optimized_model_filepath = "/nowhere/model.onnx"
    return options


def test_a_damaged_model_is_an_error_and_leaves_nothing(model, cache):
    os.truncate(model.with_name("model.onnx.data"), 1000)
    with pytest.raises(EngineError, match="unet"):
        run(model, cache)
    assert not list(cache.glob("**/*model*"))


def test_a_bundle_of_links_is_read(model, cache, tmp_path):
    """As a hub's cache has it: every file a link into a folder of blobs."""
    expected = run(model)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for file in list(model.parent.iterdir()):
        file.rename(blobs / f"blob-{file.name}")
        file.symlink_to(f"../../blobs/blob-{file.name}")
    np.testing.assert_array_equal(run(model), expected)
    np.testing.assert_array_equal(run(model, cache), expected)
    np.testing.assert_array_equal(run(model, cache), expected)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "", "absent", "."])
def test_weights_outside_of_the_folder_are_refused(model, cache, location):
    proto = onnx.load(model, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    onnx.save(proto, model)
    with pytest.raises(EngineError, match="unet"):
        run(model, cache)


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from bksdm.engines import onnxruntime as backend
x = np.load(sys.argv[3])
y = backend.OnnxRuntimeEngine(Path(sys.argv[1]), cache=Path(sys.argv[2]))({"x": x})["y"]
assert np.array_equal(y, np.load(sys.argv[4]))
"""


def start(model, cache, tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", run(model))
    files = (str(path) for path in (model, cache, tmp_path / "x.npy", tmp_path / "y.npy"))
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *files], stderr=subprocess.PIPE)


def test_processes_that_start_together_all_start(model, cache, tmp_path):
    processes = [start(model, cache, tmp_path) for _ in range(4)]
    for process in processes:
        assert process.communicate()[1] == b""
        assert process.returncode == 0
    assert len(saved(cache)) == 1


def test_threads_that_start_together_all_start(model, cache):
    expected = run(model)
    for _ in range(10):
        shutil.rmtree(cache, ignore_errors=True)
        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(lambda _: run(model, cache), range(8)):
                np.testing.assert_array_equal(found, expected)
        assert len(saved(cache)) == 1


def test_what_killed_starts_left_is_cleared(model, cache):
    run(model, cache)
    (folder,) = saved(cache)
    shutil.rmtree(folder)
    left = folder.with_name(f"{PARTIAL}0123")
    left.mkdir()
    run(model, cache)
    assert saved(cache) == [folder]


def test_what_nobody_has_used_for_weeks_is_pruned(model, cache, tmp_path):
    run(model, cache)
    (old,) = saved(cache)
    long_ago = time.time() - 15 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    save_model(model, seed=1)
    run(model, cache)
    (new,) = saved(cache)
    assert new != old
    recent = time.time() - 13 * 24 * 3600
    os.utime(new, (recent, recent))
    save_model(model, seed=2)
    run(model, cache)
    assert new in saved(cache)
    # A start is a use.
    os.utime(new, (long_ago, long_ago))
    save_model(model, seed=1)
    run(model, cache)
    assert new.stat().st_mtime > recent


@pytest.fixture
def in_site_packages(tmp_path, monkeypatch):
    """A network that nothing may be written beside, and the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(preparing, "SLOW_FROM_BYTES", 0)
    path = tmp_path / "site-packages" / "bundle" / "unet" / "model.onnx"
    save_model(path)
    return path, path.parents[1] / "engines", tmp_path / "home" / "bksdm" / "engines"


def test_installed_bundles_are_stored_in_the_user_s_cache(in_site_packages, caplog):
    model, engines, home = in_site_packages
    expected = run(model)
    with caplog.at_level("INFO", "bksdm"):
        np.testing.assert_array_equal(run(model, engines), expected)
    (folder,) = saved(next(home.iterdir()))
    assert not engines.exists()
    assert str(folder.parents[1]) in caplog.text
    assert "rewriting the graphs once" in caplog.text
    caplog.clear()
    stamp = (folder / "model.onnx").stat().st_mtime_ns
    with caplog.at_level("INFO", "bksdm"):
        np.testing.assert_array_equal(run(model, engines), expected)
    assert (folder / "model.onnx").stat().st_mtime_ns == stamp
    assert caplog.text == ""


def test_a_graph_that_came_with_the_bundle_is_read(in_site_packages, tmp_path):
    model, engines, home = in_site_packages
    made = shutil.copytree(model.parents[1], tmp_path / "made")
    expected = run(made / "unet" / "model.onnx", made / "engines")
    shutil.copytree(made / "engines", engines)
    before = {path: path.stat().st_mtime_ns for path in engines.rglob("*.onnx*")}
    np.testing.assert_array_equal(run(model, engines), expected)
    assert not list(home.glob("*/graphs-*/*"))
    assert {path: path.stat().st_mtime_ns for path in engines.rglob("*.onnx*")} == before


def test_processes_share_the_user_s_cache(in_site_packages, tmp_path):
    model, engines, home = in_site_packages
    processes = [start(model, engines, tmp_path) for _ in range(2)]
    for process in processes:
        assert process.communicate()[1] == b""
        assert process.returncode == 0
    assert len(saved(next(home.iterdir()))) == 1
    assert not engines.exists()


def test_a_home_that_cannot_be_written_costs_time_only(in_site_packages, tmp_path):
    model, engines, home = in_site_packages
    (tmp_path / "home").touch()
    expected = run(model)
    with pytest.warns(UserWarning, match=f"cannot be stored in {home}"):
        np.testing.assert_array_equal(run(model, engines), expected)
    assert not engines.exists()


def test_what_other_bundles_left_in_the_user_s_cache_is_pruned(in_site_packages, tmp_path):
    model, engines, home = in_site_packages
    run(model, engines)
    (old,) = saved(next(home.iterdir()))
    long_ago = time.time() - 15 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    other = tmp_path / "site-packages" / "other" / "unet" / "model.onnx"
    save_model(other, seed=1)
    run(other, other.parents[1] / "engines")
    assert not old.exists()


@pytest.fixture
def emoji(tmp_path):
    folder = tmp_path / "emoji"
    ignored = shutil.ignore_patterns("vae", "classifier", "engines")
    return shutil.copytree(EMOJI, folder, ignore=ignored)


def test_a_build_mends_what_is_damaged(emoji, capsys):
    assert main(["build", str(emoji), "--engine", "onnxruntime"]) == 0
    (data,) = emoji.glob("engines/graphs-*/unet-shallow-*/model.onnx.data")
    whole = data.read_bytes()
    content = bytearray(whole)
    content[len(content) // 2] ^= 0xFF
    data.write_bytes(content)
    assert main(["build", str(emoji), "--engine", "onnxruntime"]) == 0
    assert data.read_bytes() == whole


def test_a_build_that_stores_nothing_fails(emoji, capsys):
    (emoji / "engines").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["build", str(emoji), "--engine", "onnxruntime"]) == 2
    assert "cannot be stored in" in capsys.readouterr().err.splitlines()[-1]
