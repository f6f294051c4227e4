"""Finished pictures, kept in memory for a while behind links that are signed and expire."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from bksdm.serve.errors import NotFound


class Kept(NamedTuple):
    """A file in memory."""

    content: bytes
    media_type: str
    until: float


class KeptPictures:
    """Pictures by name; the oldest go first when there are too many.

    Parameters
    ----------
    seconds : float
        How long one is kept.
    most_bytes : int
        Of all together.
    """

    def __init__(self, seconds: float, most_bytes: int) -> None:
        self._seconds, self._most_bytes = seconds, most_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._bytes = 0
        self._secret = secrets.token_bytes(32)

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, content: bytes, media_type: str) -> str:
        """Keep a picture, and return the path of its link."""
        now = time.time()
        name = f"{secrets.token_urlsafe(16)}.{media_type.rpartition('/')[2]}"
        self._kept[name] = Kept(content, media_type, now + self._seconds)
        self._bytes += len(content)
        while self._bytes > self._most_bytes or next(iter(self._kept.values())).until < now:
            _, gone = self._kept.popitem(last=False)
            self._bytes -= len(gone.content)
            if not self._kept:
                break
        expires = str(int(now + self._seconds))
        return f"/v1/files/{name}?expires={expires}&signature={self._signature(name, expires)}"

    def fetch(self, name: str, query: Mapping[str, str]) -> Kept:
        """Return the picture of a link.

        Raises
        ------
        NotFound
            The link is not one of ours, or its time is over.
        """
        expires, signature = query.get("expires", ""), query.get("signature", "")
        # Bytes: texts that are not ASCII cannot be compared.
        ours = self._signature(name, expires).encode()
        genuine = hmac.compare_digest(ours, signature.encode(errors="replace"))
        found = self._kept.get(name)
        if not genuine or found is None or found.until < time.time():
            raise NotFound("this link is not valid, or no longer")
        return found

    def _signature(self, name: str, expires: str) -> str:
        told = f"{name}\n{expires}".encode(errors="replace")
        return hmac.new(self._secret, told, hashlib.sha256).hexdigest()
