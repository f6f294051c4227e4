"""Where engines are written: in the bundle, or in the user's cache if it is not ours to write."""

from __future__ import annotations

import pytest

from bksdm.models import EMOJI
from bksdm.storage import places
from bksdm.storage.places import engines_folder, user_cache, written_in


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.platform", "linux")


def test_a_bundle_that_can_be_written_holds_its_own(tmp_path):
    bundle = tmp_path / "small"
    bundle.mkdir()
    assert engines_folder(bundle) == bundle / "engines"


@pytest.mark.parametrize(
    "place",
    [
        "lib/python3.11/site-packages/models/small",
        "lib/python3/dist-packages/small",
        "hub/models--nota-ai--small/snapshots/1a2b",
    ],
)
def test_what_others_manage_is_left_alone(tmp_path, place):
    bundle = tmp_path / place
    bundle.mkdir(parents=True)
    assert engines_folder(bundle).parent == user_cache() / "engines"
    assert engines_folder(bundle).name.startswith(f"{bundle.name}-")


def test_a_link_into_a_hub_cache_is_one(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c"
    snapshot.mkdir(parents=True)
    (tmp_path / "bundle").symlink_to(snapshot)
    assert engines_folder(tmp_path / "bundle") == engines_folder(snapshot)


def test_the_built_in_model_is_never_written():
    assert engines_folder(EMOJI).is_relative_to(user_cache())


@pytest.mark.parametrize("engines", [False, True])
def test_a_bundle_that_cannot_be_written(tmp_path, monkeypatch, engines):
    bundle = tmp_path / "small"
    (bundle / "engines").mkdir(parents=True) if engines else bundle.mkdir()
    locked = bundle / "engines" if engines else bundle
    # To the superuser, as whom tests may run, everything can be written.
    monkeypatch.setattr(places.os, "access", lambda path, mode: path != locked)
    assert engines_folder(bundle).is_relative_to(user_cache())
    assert written_in(bundle / "engines", bundle) == engines_folder(bundle)
    # What the user has named is taken at his word.
    assert written_in(tmp_path / "given", bundle) == tmp_path / "given"


def test_bundles_of_one_name_do_not_share(tmp_path, monkeypatch):
    monkeypatch.setattr(places.os, "access", lambda path, mode: False)
    folders = [tmp_path / name / "small" for name in "ab"]
    assert len({engines_folder(folder) for folder in folders}) == 2


def test_without_a_home_nothing_goes_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *name, **options: "~/.cache/bksdm")
    monkeypatch.setattr(places.os, "access", lambda path, mode: False)
    assert engines_folder(tmp_path) == tmp_path / "engines"
