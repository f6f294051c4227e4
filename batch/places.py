"""Where pictures go: a folder, or a bucket of fsspec. A file is there whole or not at all."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from bksdm.engines.errors import RequestError
from bksdm.runtime.user_files import read_input, write_output
from bksdm.storage.files import PARTIAL, clear_abandoned

ABANDONED = timedelta(hours=1)
"""After which nobody writes a file of a bucket any more, which has no locks that would tell."""


class Place(Protocol):
    """Files by name."""

    def read(self, name: str) -> bytes | None:
        """Return what a file holds; None where there is none."""

    def publish(self, name: str, content: bytes) -> None:
        """Write a file under another name, and give it its own when it is whole."""

    def clear(self) -> None:
        """Remove what writers that were killed have left."""

    def path(self, name: str) -> str:
        """Return how a file is called from outside."""


class Folder:
    """A folder of this machine, or one that machines share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> bytes | None:
        """Return what a file holds; None where there is none."""
        file = self._folder / name
        return read_input(file) if file.exists() else None

    def publish(self, name: str, content: bytes) -> None:
        """Write a file at once.

        Raises
        ------
        RequestError
            It cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        write_output(self._folder / name, content)

    def clear(self) -> None:
        """Remove what writers that were killed have left."""
        clear_abandoned(self._folder)

    def path(self, name: str) -> str:
        """Return the path of a file."""
        return str(self._folder / name)


class Bucket:
    """What a URL leads to, as ``s3://bucket/pictures``.

    Parameters
    ----------
    url : str
        Of a file system that fsspec knows, see its list of protocols.

    Raises
    ------
    RequestError
        There is no such file system, or a package is missing.
    """

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            told = f"{url} needs fsspec; run: pip install 'bksdm-runtime[ray]'"
            raise RequestError(told) from error
        # Others have no folders that would have to be made.
        options: dict[str, Any] = {}
        if url.startswith(("file:", "local:")):
            options["auto_mkdir"] = True
        try:
            self._files, self._root = url_to_fs(url, **options)
        except (ValueError, ImportError) as error:
            raise RequestError(f"{url}: {error}") from error
        self._url = url.rstrip("/")

    def read(self, name: str) -> bytes | None:
        """Return what a file holds; None where there is none."""
        try:
            content: bytes = self._files.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return None
        return content

    def publish(self, name: str, content: bytes) -> None:
        """Write a file under another name, and give it its own when it is whole."""
        partial = f"{self._root}/{PARTIAL}{secrets.token_hex(8)}-{name}"
        self._files.pipe_file(partial, content)
        self._files.mv(partial, f"{self._root}/{name}")

    def clear(self) -> None:
        """Remove what writers that were killed have left, :data:`ABANDONED` ago."""
        now = datetime.now(UTC)
        for entry in self._files.glob(f"{self._root}/{PARTIAL}*"):
            # Another run that draws into this place may be writing.
            if now - self._files.modified(entry) > ABANDONED:
                self._files.rm_file(entry)

    def path(self, name: str) -> str:
        """Return the URL of a file."""
        return f"{self._url}/{name}"


def open_place(text: str) -> Place:
    """Return the place of a path or URL.

    Raises
    ------
    RequestError
        There is no such place, or a package is missing.
    """
    return Bucket(text) if "://" in text else Folder(Path(text))
