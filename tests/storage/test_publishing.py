"""Bundles and checkpoints appear when they are complete; of an error nothing is left."""

from __future__ import annotations

import resource
from contextlib import contextmanager

import pytest

from bksdm.cli import main
from bksdm.engines.errors import ExportError
from bksdm.export.dummy import create_dummy
from bksdm.storage.files import PARTIAL, staged
from bksdm.storage.publishing import publishing, refuse_existing


def publish(target, then):
    with publishing(target) as folder:
        (folder / "file").write_text("half")
        then()


def fail_with(error):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, ExportError])
def test_an_error_leaves_neither_the_folder_nor_those_above_it(tmp_path, error):
    (tmp_path / "there").mkdir()
    with pytest.raises(error):
        publish(tmp_path / "there" / "a" / "b" / "target", fail_with(error))
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]
    assert list((tmp_path / "there").iterdir()) == []


def test_folders_that_others_have_come_to_use_stay(tmp_path):
    def interrupted():
        (tmp_path / "a" / "other").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path / "a" / "b" / "target", interrupted)
    assert list(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a" / "other"]


def test_a_finished_folder_appears_under_its_name(tmp_path):
    target = tmp_path / "a" / "target"
    with publishing(target) as folder:
        (folder / "file").write_text("whole")
        assert not target.exists()
    assert (target / "file").read_text() == "whole"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_what_was_made_meanwhile_is_left_as_it_is(tmp_path):
    target = tmp_path / "target"

    def make():
        target.mkdir()
        (target / "mine").write_text("")

    with pytest.raises(ExportError, match=r"cannot write .*: File exists"):
        publish(target, make)
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "mine"]


def test_leftovers_of_killed_processes_go_and_those_of_others_stay(tmp_path):
    abandoned = tmp_path / f"{PARTIAL}0123456789abcdef"
    (abandoned / "unet").mkdir(parents=True)
    with staged(tmp_path / "other") as at_work:
        create_dummy("nano", tmp_path / "nano")
        assert at_work.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nano", "other"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("a" * 300, "File name too long"), ("file/below", "Not a directory"), ("a\0b", "null")],
)
def test_names_that_no_folder_can_have_are_refused_at_once(tmp_path, name, said):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=f"(?s)cannot write .*{said}"):
        refuse_existing(tmp_path / name)


def test_links_to_nothing_exist(tmp_path):
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(ExportError, match="exists already"):
        refuse_existing(tmp_path / "link")


def test_the_longest_name_will_do(tmp_path):
    create_dummy("nano", tmp_path / ("a" * 255))
    assert [path.name for path in tmp_path.iterdir()] == ["a" * 255]


@contextmanager
def full_disk():
    """Files of a few kilobytes and no more, as on a disk that is nearly full.

    Around the command alone: what pytest itself writes may go to a file that is longer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("command", ["dummy", "export"])
def test_a_full_disk_is_told_in_one_line(nano_checkpoint, tmp_path, capsys, command):
    target = tmp_path / "a" / "target"
    source = "nano" if command == "dummy" else str(nano_checkpoint)
    with full_disk():
        code = main([command, source, "-o", str(target)])
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot write {target}" in line
    assert "File too large" in line
    assert list(tmp_path.iterdir()) == []
