"""Digests follow the content, and are remembered for large bundles only."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from bksdm.engines import digest
from bksdm.engines.digest import digest_files


@pytest.fixture
def files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    return [tmp_path / "a", tmp_path / "b"]


def expected(contents):
    lines = (f"{n} {hashlib.sha256(c.encode()).hexdigest()}\n" for n, c in contents.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_digest_is_of_names_and_contents(files, tmp_path):
    record = tmp_path / "engines" / "digests.json"
    assert digest_files(tmp_path, files, record) == expected({"a": "a", "b": "b"})
    assert not record.exists()


def test_a_changed_file_is_hashed_again(files, tmp_path, monkeypatch):
    monkeypatch.setattr(digest, "RECORD_FROM_BYTES", 0)
    record = tmp_path / "engines" / "digests.json"
    first = digest_files(tmp_path, files, record)
    assert sorted(json.loads(record.read_text())) == ["a", "b"]
    hashed = []
    whole = digest.sha256_of
    monkeypatch.setattr(digest, "sha256_of", lambda file: hashed.append(file.name) or whole(file))
    assert digest_files(tmp_path, files, record) == first
    assert hashed == []
    files[1].write_text("x")
    os.utime(files[1], ns=(1, 1))
    assert digest_files(tmp_path, files, record) == expected({"a": "a", "b": "x"})
    assert hashed == ["b"]


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1, "b": [1, 2]}'])
def test_a_damaged_record_is_replaced(files, tmp_path, monkeypatch, content):
    monkeypatch.setattr(digest, "RECORD_FROM_BYTES", 0)
    record = tmp_path / "digests.json"
    record.write_text(content)
    assert digest_files(tmp_path, files, record) == expected({"a": "a", "b": "b"})
    assert set(json.loads(record.read_text())) == {"a", "b"}
