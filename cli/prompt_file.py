"""Files of prompts: lines of text, or of JSON with options, or rows of Parquet."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bksdm.cli.arguments import nearest
from bksdm.cli.extras import require
from bksdm.cli.picture_options import flags, parse_size
from bksdm.engines.errors import RequestError, SamplerError
from bksdm.runtime.generation_config import OPTIONS, GenerationConfig
from bksdm.runtime.user_files import read_input
from bksdm.runtime.validation import shown

JSON_LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
KEYS = {
    spelling.lstrip("-").replace("-", "_"): name
    for name in OPTIONS
    for spelling in (name, *flags(name))
    if not re.fullmatch("-[a-zA-Z]", spelling)
}
"""Options by every key that a line may call them by."""
MOST_ERRORS = 5
"""That are told in full."""
Rows = dict[int, Callable[[], dict[str, Any]]]
"""By its number, what returns the options of a line by their names, or raises what is wrong."""


@dataclass(frozen=True)
class PromptLine:
    """A line, and what it asks for."""

    number: int
    config: GenerationConfig


@dataclass
class LineErrors:
    """What is wrong with the lines of a file, to be refused all at once."""

    path: Path
    found: dict[int, str] = field(default_factory=dict)

    @contextmanager
    def of(self, number: int) -> Iterator[None]:
        """Note an error in the block as one of a line."""
        try:
            yield
        except (RequestError, SamplerError) as error:
            self.found[number] = str(error)

    def refuse(self) -> None:
        """Raise the errors, if there are any.

        Raises
        ------
        RequestError
            Names the lines.
        """
        if not self.found:
            return
        told = [f"line {number}: {error}" for number, error in sorted(self.found.items())]
        if (more := len(told) - MOST_ERRORS) > 0:
            told[MOST_ERRORS:] = [f"and {more} more lines"]
        raise RequestError(f"{self.path}: {'; '.join(told)}")


def read_prompts(path: Path, shared: Mapping[str, Any], errors: LineErrors) -> list[PromptLine]:
    """Return the lines that are not empty.

    Line k takes from the command what it does not say, and its seed, if that is not said, is the
    command's, or 0, plus k - 1: so it is the same in every run and every part of the file.

    Parameters
    ----------
    path : Path
        In UTF-8. Lines are JSON objects if the name ends in one of :data:`JSON_LINES` or the first
        line is one. If it ends in :data:`PARQUET`, its rows are the lines, its columns options.
    shared : mapping
        The command's options by name.
    errors : LineErrors
        Takes what is wrong with lines, which are left out.

    Raises
    ------
    RequestError
        The file cannot be read or has no prompts, or the command's seed is not one number.
    BksdmError
        Parquet needs a package that is missing; names the extra that installs it.
    """
    first_seed = 0 if shared.get("seed") is None else shared["seed"]
    if not isinstance(first_seed, int):
        raise RequestError("--seed takes one number with --prompts; lists can be in the file")
    rows = _parquet_rows(path) if path.suffix.lower() == PARQUET else _text_rows(path)
    lines = []
    for number, read in rows.items():
        with errors.of(number):
            said = read()
            if said.get("seed") is None:
                said["seed"] = first_seed + number - 1
            config = GenerationConfig.from_dict({**shared, **said})
            lines.append(PromptLine(number, config))
    return lines


def _text_rows(path: Path) -> Rows:
    rows = {
        number: row.strip()
        for number, row in enumerate(re.split("\r\n?|\n", _text(path)), 1)
        if row.strip()
    }
    if not rows:
        raise RequestError(f"{path}: holds no prompts")
    if path.suffix.lower() in JSON_LINES or _is_object(next(iter(rows.values()))):
        return {number: partial(_json_options, row) for number, row in rows.items()}
    return {number: partial(_plain, row) for number, row in rows.items()}


def _parquet_rows(path: Path) -> Rows:
    require("pyarrow", "parquet")
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(pyarrow.BufferReader(read_input(path))).to_pylist()
    except pyarrow.ArrowException as error:
        raise RequestError(f"{path}: not Parquet ({str(error).splitlines()[0]})") from error
    if not rows:
        raise RequestError(f"{path}: holds no prompts")
    # A column has a value in every row; null stands for none.
    said = [{key: value for key, value in row.items() if value is not None} for row in rows]
    return {number: partial(_options, row) for number, row in enumerate(said, 1)}


def _plain(row: str) -> dict[str, Any]:
    if _is_object(row):
        raise RequestError(
            "is a JSON object, but the first line is plain text; write all in one form"
        )
    return {"prompt": row}


def _is_object(row: str) -> bool:
    return re.match(r'\{\s*"', row) is not None


def _text(path: Path) -> str:
    content = read_input(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = len(re.split(b"\r\n?|\n", content[: error.start]))
        raise RequestError(f"{path}: line {number}: not UTF-8") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, each of whose keys stands once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key in found if [name for name, _ in pairs].count(key) > 1)
        raise RequestError(f"{twice} is given twice")
    return found


def _json_options(row: str) -> dict[str, Any]:
    """Return the options of a line of JSON by their names."""
    try:
        found = json.loads(row, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        raise RequestError(f"not valid JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number too long, or too deep
        raise RequestError(f"not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise RequestError('must be a JSON object, as {"prompt": "a cat", "seed": 3}')
    return _options(found)


def _options(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by their names, which may have been given by their flags'."""
    options: dict[str, Any] = {}
    for key, value in found.items():
        if key == "size":
            width, height = parse_size(value if isinstance(value, str) else shown(value))
            said: dict[str, Any] = {"width": width, "height": height}
        elif key in KEYS:
            said = {KEYS[key]: value}
        else:
            hint = nearest(key, KEYS) or f"; known: {', '.join(OPTIONS)}"
            raise RequestError(f"unknown option {shown(key)}{hint}")
        if twice := [name for name in said if name in options]:
            raise RequestError(f"{twice[0]} is given twice")
        options |= said
    if "prompt" not in options:
        raise RequestError("has no prompt")
    return options
