"""Writing at once or not at all, beside other processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bksdm.storage.digest import sha256_of
from bksdm.storage.files import (
    PARTIAL,
    clear_abandoned,
    in_use,
    read_regular,
    remove_unused,
    staged,
    write_file,
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="no such locks and files on Windows")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_keeps_its_permissions(tmp_path):
    path = tmp_path / "a.txt"
    write_file(path, b"old")
    path.chmod(0o640)
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["a.txt"]


@posix
def test_only_regular_files_are_read_to_their_end(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a")
    (tmp_path / "link").symlink_to("a.txt")
    assert read_regular(tmp_path / "link") == b"a"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "device", tmp_path):
        for read in (read_regular, sha256_of):
            with pytest.raises(OSError, match="not a regular file"):
                read(path)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "b.txt")


@posix
def test_a_new_file_has_the_permissions_that_others_get(tmp_path):
    write_file(tmp_path / "ours", b"")
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@posix
@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed(tmp_path, there):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "a.txt", tmp_path / "link"
    if there:
        target.write_bytes(b"old")
    link.symlink_to(target)
    write_file(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert names(tmp_path / "far") == ["a.txt"]


@posix
def test_a_pipe_is_written_through(tmp_path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    write_file(pipe, b"content")
    reader.join()
    assert found == [b"content"]
    assert pipe.is_fifo()


@posix
def test_a_device_stays_a_device():
    write_file(Path("/dev/null"), b"content")
    assert Path("/dev/null").is_char_device()


@posix
def test_what_a_shell_has_opened_is_written_through(tmp_path):
    program = (
        "import sys; from pathlib import Path; from bksdm.storage.files import write_file;"
        "write_file(Path('/dev/stdout'), b'content'); print('more')"
    )
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True)
    assert "content" in (tmp_path / "out").read_text() or "more" in (tmp_path / "out").read_text()
    assert names(tmp_path) == ["out"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(OSError, match="there"):
        write_file(tmp_path / "there", b"")
    with pytest.raises(OSError, match="long"):
        write_file(tmp_path / ("x" * 300), b"")
    assert names(tmp_path) == ["there"]


def test_the_longest_name_of_a_file_can_be_written(tmp_path):
    write_file(tmp_path / ("x" * 255), b"content")
    assert names(tmp_path) == ["x" * 255]


def test_a_folder_appears_when_it_is_finished(tmp_path):
    with staged(tmp_path / "target") as folder:
        (folder / "a").touch()
        assert not (tmp_path / "target").exists()
    assert names(tmp_path) == ["target"]
    assert names(tmp_path / "target") == ["a"]


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt])
def test_a_folder_that_fails_leaves_nothing(tmp_path, raised):
    def fail():
        with staged(tmp_path / "target") as folder:
            (folder / "a").touch()
            raise raised

    with pytest.raises(raised):
        fail()
    assert names(tmp_path) == []


def test_a_folder_that_is_there_stays(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old").touch()
    with pytest.raises(FileExistsError), staged(tmp_path / "target") as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["target"]
    assert names(tmp_path / "target") == ["old"]


KILLED = """
import sys, time
from pathlib import Path
from bksdm.storage.files import staged
with staged(Path(sys.argv[1]) / "target") as folder:
    (folder / "a").touch()
    print(flush=True)
    time.sleep(60)
"""


@posix
def test_only_what_no_process_holds_is_cleared(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        clear_abandoned(tmp_path)
        assert len(names(tmp_path)) == 1
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert names(tmp_path)[0].startswith(PARTIAL)
    (tmp_path / f"{PARTIAL}file").touch()
    clear_abandoned(tmp_path)
    assert names(tmp_path) == []


@posix
def test_a_folder_in_use_is_not_removed(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with in_use(folder), in_use(folder):
        assert not remove_unused(folder)
    assert remove_unused(folder)
    assert names(tmp_path) == []
    with pytest.raises(FileNotFoundError), in_use(folder):
        pass


@posix
def test_many_writers_and_one_who_clears(tmp_path):
    """Nobody's unfinished work is cleared: each writer finds its own content."""
    stop, failures = threading.Event(), []

    def clear():
        while not stop.is_set():
            clear_abandoned(tmp_path)

    def write(number):
        try:
            for turn in range(50):
                write_file(tmp_path / f"{number}", b"%d" % turn)
                with staged(tmp_path / f"{number}-{turn}") as folder:
                    (folder / "a").touch()
                    time.sleep(0)
                assert names(tmp_path / f"{number}-{turn}") == ["a"]
        except Exception as error:
            failures.append(error)

    cleaner = threading.Thread(target=clear)
    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in (cleaner, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    cleaner.join()
    assert not failures
    assert len(names(tmp_path)) == 4 * 51


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes that fork here")
def test_an_interrupt_at_any_moment_leaves_nothing(tmp_path):
    """It ends the process right after a file was made, before any ``try`` can know of it."""
    code = f"""
import os, sys
from pathlib import Path
from bksdm.storage import files
real = files._create_file
def create(path):
    real(path)
    if os.fork() == 0:
        sys.exit()  # what another process leaves is not its own
    os.wait()
    assert path.exists()
    raise KeyboardInterrupt
files._create_file = create
files.write_file(Path({str(tmp_path)!r}) / "x", b"x")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "KeyboardInterrupt" in done.stderr
    assert "AssertionError" not in done.stderr
    assert list(tmp_path.iterdir()) == []
