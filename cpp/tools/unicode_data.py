"""Write ``include/bksdm/unicode_data.hpp``: what the ``tokenizers`` library knows of Unicode.

Every fact is asked of that library, whatever versions of Unicode its parts are of, so that C++ and
Python tokenize alike; only the classes of the marks that it moves are Python's.

    python cpp/tools/unicode_data.py > cpp/include/bksdm/unicode_data.hpp
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator

from tokenizers import Regex, normalizers, pre_tokenizers

EVERY = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
HANGUL = range(0xAC00, 0xD7A4)
BLOCK = 4096
HEAD = """// Written by tools/unicode_data.py: what tokenizers {version} of Python knows of Unicode.
#pragma once
// clang-format off

#include <cstdint>

namespace bksdm::unicode_data {{

struct Range {{
    std::uint32_t first, last;
}};

// A character and what it becomes; unused places are zero.
struct Mapping {{
    std::uint32_t from, to[2];
}};

struct Class {{
    std::uint32_t character;
    std::uint8_t value;
}};
"""


def matching(pattern: str) -> list[int]:
    """Return the characters that a regular expression of the library matches."""
    split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    found = []
    for first in range(0, len(EVERY), BLOCK):
        block = "".join(map(chr, EVERY[first : first + BLOCK]))
        found += [ord(c) for part, _ in split.pre_tokenize_str(block) for c in part]
    return sorted(found)


def changed(normalize: Callable[[str], str]) -> dict[int, str]:
    """Return what single characters become, of those that change."""
    return {c: to for c in EVERY if (to := normalize(chr(c))) != chr(c)}


def ranges(characters: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield first and last of every run."""
    start = last = -2
    for c in characters:
        if c != last + 1:
            if start >= 0:
                yield start, last
            start = c
        last = c
    yield start, last


def array(kind: str, name: str, entries: Iterable[str]) -> None:
    """Print an array, in lines of up to a hundred characters."""
    print(f"\ninline constexpr {kind} {name}[] = {{")
    line = "   "
    for entry in entries:
        if len(line) + len(entry) + 2 > 100:
            print(line)
            line = "   "
        line += f" {entry},"
    print(f"{line}\n}};")


def moves(nfd: Callable[[str], str], mark: str) -> bool:
    """Return whether a mark changes places with one of a lower or a higher class."""
    high, low = "\u0345" + mark, mark + "\u0334"
    return bool(unicodedata.combining(mark)) and (nfd(high) != high or nfd(low) != low)


def mapping(c: int, to: str) -> str:
    """Return a :class:`Mapping` of C++."""
    first, second = [*map(ord, to), 0][:2]
    assert len(to) <= 2
    return f"{{0x{c:X}, {{0x{first:X}, 0x{second:X}}}}}"


def main() -> None:
    """Print the header."""
    import tokenizers

    nfd, nfc = normalizers.NFD().normalize_str, normalizers.NFC().normalize_str
    lower = changed(normalizers.Lowercase().normalize_str)
    decomposed = {c: to for c, to in changed(nfd).items() if c not in HANGUL}
    # One step of each: the pair that is composed again.
    pairs = {}
    for c in decomposed:
        fields = unicodedata.decomposition(chr(c)).split()
        if len(fields) == 2 and not fields[0].startswith("<"):
            pair = "".join(chr(int(field, 16)) for field in fields)
            if nfc(pair) == chr(c):
                pairs[c] = pair
    print(HEAD.format(version=tokenizers.__version__), end="")
    for name, pattern in (("letters", r"\p{L}"), ("numbers", r"\p{N}"), ("spaces", r"\s")):
        found = ranges(matching(pattern))
        array("Range", name, (f"{{0x{a:X}, 0x{b:X}}}" for a, b in found))
    array("Mapping", "lowercase", (mapping(c, to) for c, to in lower.items()))
    steps = {}
    for c, whole in decomposed.items():
        fields = unicodedata.decomposition(chr(c)).split()
        step = "".join(chr(int(field, 16)) for field in fields) if fields else whole
        assert nfd(step) == whole, hex(c)
        steps[c] = step
    array("Mapping", "decompositions", (mapping(c, to) for c, to in steps.items()))
    composed = sorted((ord(pair[0]), ord(pair[1]), c) for c, pair in pairs.items())
    # Sorted by the pair: here from is what it becomes.
    array("Mapping", "compositions", (f"{{0x{c:X}, {{0x{a:X}, 0x{b:X}}}}}" for a, b, c in composed))
    # Marks that are newer than the library's Unicode are left where they stand.
    moved = (c for c in EVERY if c not in decomposed and moves(nfd, chr(c)))
    array("Class", "classes", (f"{{0x{c:X}, {unicodedata.combining(chr(c))}}}" for c in moved))
    print("\n}  // namespace bksdm::unicode_data")


if __name__ == "__main__":
    main()
