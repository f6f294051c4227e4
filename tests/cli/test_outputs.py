"""Where results go: files, links, devices, pipes and standard output; in full or not at all."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bksdm.storage.files import PARTIAL

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and links of Unix")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def read_pipe(path):
    """Read a named pipe to its end while a command writes; return where the content will be."""
    found = []
    thread = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
    thread.start()
    return found, thread


def test_a_named_pipe_is_written_through(draw, tmp_path):
    pipe, plain = tmp_path / "pipe", tmp_path / "plain.png"
    os.mkfifo(pipe)
    assert draw("-o", plain)[0] == 0
    found, thread = read_pipe(pipe)
    assert draw("-o", pipe)[:2] == (0, f"{pipe}\n")
    thread.join(10)
    assert found == [plain.read_bytes()]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    for option in ("--animate", "--save-steps"):
        found, thread = read_pipe(pipe)
        code, _, err = draw("-o", plain, option, pipe)
        if option == "--animate":
            thread.join(10)
            assert code == 0
            assert Image.open(io.BytesIO(found[0])).format == "WEBP"
        else:
            assert (code, "cannot make" in err) == (2, True)
            pipe.write_bytes(b"")  # so that the reader ends
    assert names(tmp_path) == ["pipe", "plain.png"]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="makes device nodes")
def test_devices_stay_devices(draw, tmp_path):
    """On nodes of our own: a mistake here would cost the machine its /dev/null."""
    null, full = tmp_path / "null", tmp_path / "full"
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(full, stat.S_IFCHR | 0o666, os.makedev(1, 7))
    assert draw("-o", null, "--animate", null)[0] == 0
    said = f"seed: 0\nbksdm: error: cannot write {full}: No space left on device\n"
    assert draw("-o", full)[2] == said
    assert all(stat.S_ISCHR(path.stat().st_mode) for path in (null, full))
    assert draw("-o", null, "--count", 2)[2].startswith("bksdm: error: cannot write 2 pictures to")
    assert names(tmp_path) == ["full", "null"]


def test_links_are_followed_and_permissions_kept(draw, tmp_path):
    folder, link = tmp_path / "there", tmp_path / "link.png"
    folder.mkdir()
    link.symlink_to(Path("there") / "real.png")
    assert draw("-o", link)[0] == 0
    (folder / "real.png").chmod(0o640)
    before = (folder / "real.png").read_bytes()
    assert draw("-o", link, "--seed", 5)[0] == 0
    assert link.is_symlink()
    assert (folder / "real.png").read_bytes() != before
    assert stat.S_IMODE((folder / "real.png").stat().st_mode) == 0o640
    assert names(folder) == ["real.png"]
    again = tmp_path / "a.webp"
    again.symlink_to(folder / "film")
    assert draw("-o", link, "--animate", again)[0] == 0
    assert again.is_symlink()
    assert names(folder) == ["film", "real.png"]


SHELL = {
    "-o - | cat": "picture",
    "-o /dev/stdout | cat": "picture",
    "-o /dev/fd/1 | cat": "picture",
    "-o - > file; cat file": "picture",
    "-o /dev/stdout >> appended; tail -c +7 appended": "picture",
    "-o >(cat > piped) > /dev/null; wait $!; cat piped": "picture",
    "-o made.png --animate - | cat": "film",
}


@pytest.mark.parametrize("line", SHELL)
def test_standard_output_holds_nothing_but_the_file(tiny_bundle, tmp_path, line):
    (tmp_path / "appended").write_bytes(b"before")
    program = f"{sys.executable} -m bksdm.cli generate x --model {tiny_bundle} --steps 1 --seed 0"
    done = subprocess.run(
        ["bash", "-c", f"{program} {line}"], capture_output=True, check=True, cwd=tmp_path
    )
    with Image.open(io.BytesIO(done.stdout)) as picture:
        assert picture.format == ("PNG" if SHELL[line] == "picture" else "WEBP")
        picture.load()
    if SHELL[line] == "picture":
        # Nothing follows the end of a PNG file.
        assert done.stdout.endswith(b"IEND\xaeB`\x82")
    if "piped" not in line:
        assert done.stderr.endswith((b"/dev/stdout\n", b"/dev/fd/1\n"))
    assert (tmp_path / "appended").read_bytes().startswith(b"before")


def test_a_pipe_that_is_standard_output_too(draw, tmp_path, monkeypatch):
    """Paths would end up behind the picture."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found, thread = read_pipe(pipe)
    with pipe.open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        code = draw("-o", pipe)[0]
    thread.join(10)
    assert code == 0
    assert found[0].endswith(b"IEND\xaeB`\x82")


def test_records_on_standard_output_are_all_there_is(run, tiny_bundle):
    code, out, err = run("calibrate", tiny_bundle, "--steps", 1, "--json", "-")
    assert code == 0
    assert set(json.loads(out)) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    assert "unet: " in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-o", "{folder}"], "cannot write {folder}: it is a folder"),
        (["-o", "{folder}/no/x.png"], "no writable folder {folder}/no"),
        (["-o", "{file}/x.png"], "no writable folder {file}"),
        (["-o", "/proc/x.png"], "cannot write /proc/x.png: no writable folder /proc"),
        (["--save-steps", "/proc/steps"], "cannot make /proc/steps: no writable folder /proc"),
        (["-o", "{folder}/new/"], "must name a file, not the folder"),
        (["-o", ""], "must not be empty"),
        (["-o", "{folder}/" + "x" * 300], "File name too long"),
        (["-o", "{folder}/" + "ä" * 130], "File name too long"),
        # The last picture's name has two characters more.
        (["-o", "{folder}/" + "x" * 250 + ".png", "--count", "10"], "File name too long"),
        (["-o", "{folder}/loop"], "symbolic links"),
        (["-o", "{folder}/socket"], "it is a socket"),
        (["-o", "{pipe}", "--count", "2"], "cannot write 2 pictures to {pipe}"),
        (["-o", "-", "--count", "2"], "cannot write 2 pictures to /dev/stdout"),
        (["-o", "x.png", "--animate", "{pipe}", "--count", "2"], "cannot write 2 pictures to"),
        (["-o", "-", "--animate", "-"], "named for two files"),
        (["-o", "x.webp", "--animate", "{folder}/../{name}/x.webp"], "named for two files"),
        (["--save-steps", "{file}"], "cannot make {file}: no writable folder"),
        (["--save-steps", "{folder}/" + "x" * 300], "File name too long"),
        (["--save-steps", ""], "must not be empty"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(
    draw, tmp_path, monkeypatch, arguments, named
):
    if "/proc" in arguments[1] and sys.platform != "linux":
        pytest.skip("no /proc")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket")
    before = names(tmp_path)
    places = {
        "folder": tmp_path,
        "file": tmp_path / "file",
        "pipe": tmp_path / "pipe",
        "name": tmp_path.name,
    }
    code, out, err = draw(*(word.format(**places) for word in arguments))
    server.close()
    assert (code, out) == (2, "")
    assert named.format(**places) in err
    assert err.count("\n") == 1
    assert names(tmp_path) == before


def test_names_as_long_as_the_system_takes_them(draw, tmp_path):
    for name in ("x" * 246 + ".png", "ä" * 123 + ".png", "日" * 81 + ".png"):
        assert draw("-o", tmp_path / name, "--count", 2)[0] == 0
    assert len(names(tmp_path)) == 6


WRITERS = {
    "x.png": ["-o", "{folder}/x.png"],
    "a.webp": ["-o", "{other}/y.png", "--animate", "{folder}/a.webp"],
    "step-1.png": ["-o", "{other}/y.png", "--save-steps", "{folder}"],
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", ["ENOSPC", "EROFS", "SIGTERM", "SIGHUP", "SIGINT"])
def test_a_write_that_ends_early_leaves_the_old_file(
    draw, tmp_path, monkeypatch, usual_signals, name, kind
):
    folder, other = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    (folder / name).write_bytes(b"old")
    write = Path.write_bytes

    def fail(path, content):
        if path.parent != folder:
            return write(path, content)
        write(path, content[:100])
        if kind.startswith("E"):
            number = getattr(errno, kind)
            raise OSError(number, os.strerror(number))
        os.kill(os.getpid(), getattr(signal, kind))
        return len(content)

    monkeypatch.setattr(Path, "write_bytes", fail)
    code, _, err = draw(*(word.format(folder=folder, other=other) for word in WRITERS[name]))
    codes = {"SIGTERM": 143, "SIGHUP": 129, "SIGINT": 130}
    assert code == codes.get(kind, 2)
    assert err.splitlines()[-1] == {
        "ENOSPC": f"bksdm: error: cannot write {folder / name}: No space left on device",
        "EROFS": f"bksdm: error: cannot write {folder / name}: Read-only file system",
        "SIGINT": "bksdm: interrupted",
    }.get(kind, f"bksdm: ended by {kind}")
    assert names(folder) == [name]
    assert (folder / name).read_bytes() == b"old"


def test_what_killed_runs_left_is_removed_and_nothing_else(draw, tmp_path):
    steps = tmp_path / "steps"
    steps.mkdir()
    for folder in (tmp_path, steps):
        (folder / f"{PARTIAL}dead").write_bytes(b"half")
        (folder / ".hidden").touch()
    alive = tmp_path / f"{PARTIAL}alive"
    alive.touch()
    with alive.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert draw("-o", tmp_path / "x.png", "--save-steps", steps)[0] == 0
    assert names(tmp_path) == [".bksdm-partial-alive", ".hidden", "steps", "x.png"]
    assert names(steps) == [".hidden", "step-1.png"]


def test_steps_of_an_earlier_run_make_way_and_others_stay(draw, tmp_path):
    steps, output = tmp_path / "steps", ["-o", tmp_path / "x.png"]
    assert draw(*output, "--save-steps", steps, "--steps", 12, "--count", 2)[0] == 0
    # pndm repeats its second step.
    assert len(names(steps)) == 26
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(steps / "step-99.png")
    (steps / "step-98.png").write_text("no picture")
    (steps / "notes.txt").touch()
    # A request that is refused takes nothing away.
    assert draw(*output, "--save-steps", steps, "--steps", 0)[0] == 2
    assert len(names(steps)) == 29
    assert draw(*output, "--save-steps", steps, "--steps", 2)[0] == 0
    assert names(steps) == [
        "notes.txt",
        "step-1.png",
        "step-2.png",
        "step-3.png",
        "step-98.png",
        "step-99.png",
    ]


def test_a_refused_request_makes_no_folder_for_steps(draw, tmp_path):
    assert draw("-o", tmp_path / "x.png", "--save-steps", tmp_path / "a" / "b", "--eta", 7)[0] == 2
    assert names(tmp_path) == []
