"""Code for other GPUs is blanked out, and everything else of a library is left."""

from __future__ import annotations

import struct

import pytest

from bksdm.benchmarks.gpu.fatbin import MAGIC, codes, keep_only


def entry(architecture, code, head=64):
    header = struct.pack("<HHIQ", 2, 0x101, head, len(code)).ljust(28, b"\0")
    return (header + struct.pack("<I", architecture)).ljust(head, b"h") + code


def container(*entries):
    body = b"".join(entries)
    return MAGIC + struct.pack("<HHQ", 1, 16, len(body)) + body


LIBRARY = (
    b"host code"
    + container(entry(80, b"old!" * 9), entry(90, b"new!" * 5, head=80))
    # The magic number by chance, once as another version, once where the library ends.
    + MAGIC
    + struct.pack("<HHQ", 7, 16, 4)
    + container(entry(90, b"more"))
    + b"data"
    + MAGIC
)


def test_code_is_found_by_architecture():
    found = [(code.architecture, LIBRARY[code.start :][: code.size]) for code in codes(LIBRARY)]
    assert found == [(80, b"old!" * 9), (90, b"new!" * 5), (90, b"more")]


def test_only_other_architectures_are_blanked():
    library = bytearray(LIBRARY)
    assert keep_only(library, {90}) == 36
    assert bytes(library) == LIBRARY.replace(b"old!" * 9, bytes(36))


def test_a_library_without_the_architecture_is_refused():
    with pytest.raises(ValueError, match=r"no code for \[120\]"):
        keep_only(bytearray(LIBRARY), {90, 120})
