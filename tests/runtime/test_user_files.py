"""Files that a user names: which are read, and how much of them."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from bksdm.engines.errors import RequestError
from bksdm.runtime import user_files
from bksdm.runtime.user_files import is_stdout, names_open_file, read_input, write_output

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices of Unix")


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/dev/stdin", True),
        ("/dev/stdout", True),
        ("/dev/fd/63", True),
        ("/proc/self/fd/0", True),
        ("/proc/123/fd/7", True),
        ("/dev/null", False),
        ("/dev/shm/fd/1", False),
        ("/dev/fd/x", False),
        ("dev/fd/1", False),
        ("/tmp/dev/stdin", False),
    ],
)
def test_names_of_open_files(path, named):
    assert names_open_file(Path(path)) == named


def test_a_pipe_is_read_where_it_was_given_and_nowhere_else(tmp_path):
    for content in (b"", b"x" * 70_000):
        reading, writing = os.pipe()

        def write(writing=writing, content=content):
            with os.fdopen(writing, "wb") as stream:
                stream.write(content)

        threading.Thread(target=write).start()
        assert read_input(Path(f"/dev/fd/{reading}")) == content
        os.close(reading)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to(pipe)
    for path in (pipe, link, Path("/dev/zero"), Path("/dev/null"), Path("/dev/tty")):
        with pytest.raises(RequestError, match="a device or a named pipe"):
            read_input(path)


def test_no_more_is_read_than_a_picture_can_have(tmp_path, monkeypatch):
    monkeypatch.setattr(user_files, "MOST_BYTES", 1000)
    path = tmp_path / "x"
    path.write_bytes(b"x" * 1000)
    assert len(read_input(path)) == 1000
    path.write_bytes(b"x" * 1001)
    with pytest.raises(RequestError, match="x: larger than"):
        read_input(path)


def test_standard_output_is_known_by_every_name(tmp_path, monkeypatch):
    regular, pipe = tmp_path / "regular", tmp_path / "pipe"
    os.mkfifo(pipe)
    with regular.open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert is_stdout(Path("/dev/stdout"))
        assert is_stdout(Path(f"/dev/fd/{stream.fileno()}"))
        # By its own name it is replaced, as any file.
        assert not is_stdout(regular)
        assert not is_stdout(pipe)
        assert not is_stdout(tmp_path / "none")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with pipe.open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        print("before", end=" ")
        assert is_stdout(pipe)
        write_output(pipe, b"content")
        assert os.read(reader, 100) == b"before content"
    os.close(reader)


def test_why_a_file_cannot_be_written_is_told(tmp_path):
    for path, named in {
        tmp_path: "Is a directory",
        tmp_path / "no" / "x": "No such file or directory",
        tmp_path / ("x" * 300): "File name too long",
    }.items():
        with pytest.raises(RequestError, match=f"cannot write {path}: {named}"):
            write_output(path, b"")
