"""Names for the pictures of a file of prompts: a folder, or a pattern with the line's number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bksdm.engines.errors import RequestError
from bksdm.runtime.picture_formats import FORMATS

DEFAULT_NAME = "{line}.png"
DIGITS = 5
"""Of a line's number, unless the pattern says how many, so that names sort as the lines do."""
_LINE = re.compile(r"\{line(?::0?([0-9]))?\}")


@dataclass(frozen=True)
class OutputPattern:
    """Where pictures go.

    Attributes
    ----------
    folder : Path
        Of them all.
    name : str
        With ``{line}`` or ``{line:03}``.
    """

    folder: Path
    name: str = DEFAULT_NAME

    @classmethod
    def read(cls, text: str) -> OutputPattern:
        """Return what ``-o`` says.

        Raises
        ------
        RequestError
            It names a single file, or has other words in braces.
        """
        path = Path(text)
        if text == "-":
            raise RequestError("-o: pictures of --prompts go to a folder, not to standard output")
        if "{" in str(path.parent):
            raise RequestError(f"-o: {{line}} belongs to the file's name, not to {path.parent}")
        if "{" not in path.name or path.is_dir():
            if path.suffix.lower() in FORMATS and not path.is_dir():
                raise RequestError(
                    f"-o: {path} is one file; name a folder, or put {{line}} into the name, as in "
                    f"{path.stem}-{{line}}{path.suffix}"
                )
            return cls(path)
        if not _LINE.search(path.name) or re.search("[{}]", _LINE.sub("", path.name)):
            raise RequestError(f"-o: only {{line}} or {{line:03}} may be in braces, not {path}")
        return cls(path.parent, path.name)

    def path(self, line: int) -> Path:
        """Return the path of a line's first picture."""
        return self.folder / _LINE.sub(lambda word: f"{line:0{word[1] or DIGITS}}", self.name)
