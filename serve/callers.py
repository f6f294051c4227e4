"""Who asks: keys with names, priorities and rates, read from a file."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bksdm.engines.errors import RequestError
from bksdm.runtime.user_files import read_input
from bksdm.serve.errors import Refused, Unauthorized

HASHED = "sha256:"
MINUTE = 60.0


@dataclass(frozen=True)
class Caller:
    """Who sends a request.

    Attributes
    ----------
    name : str
        Of the key; without keys, the client's address.
    priority : int
        Of its requests.
    """

    name: str
    priority: int = 0


class _Key:
    """A key's digest, its caller, and how many requests it has left of its rate."""

    def __init__(self, digest: bytes, caller: Caller, rate: float | None) -> None:
        self.digest, self.caller, self._rate = digest, caller, rate
        self._left, self._at = rate or 0.0, time.monotonic()

    def take(self) -> None:
        """Count a request; what was not used in the last minute is left over."""
        if self._rate is None:
            return
        now = time.monotonic()
        self._left = min(self._rate, self._left + (now - self._at) * self._rate / MINUTE)
        self._at = now
        if self._left < 1:
            after = (1 - self._left) * MINUTE / self._rate
            raise Refused(f"{self._rate:g} requests a minute are this key's; wait", after)
        self._left -= 1


class Keys:
    """The keys of a server; without any, everybody may use it.

    Parameters
    ----------
    lines : str
        A line ``NAME KEY [priority=N] [rate=N]`` for each. ``KEY`` is the key, or
        ``sha256:`` and its digest in hexadecimal; ``rate`` is of requests a minute.

    Raises
    ------
    RequestError
        A line has another form; says which.
    """

    def __init__(self, lines: str = "") -> None:
        self._keys = [
            _read(number, line)
            for number, line in enumerate(lines.splitlines(), 1)
            if line.strip() and not line.lstrip().startswith("#")
        ]

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Read a file of keys.

        Raises
        ------
        RequestError
            There is none, it is empty, or a line has another form.
        """
        try:
            keys = cls(read_input(path).decode())
        except (UnicodeDecodeError, RequestError) as error:
            raise RequestError(f"{path}: {error}".replace(f"{path}: {path}", str(path))) from error
        if not keys.required:
            raise RequestError(f"{path}: holds no key; a line is NAME KEY [priority=N] [rate=N]")
        return keys

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._keys)

    def caller(self, headers: Mapping[str, str], address: str, counts: bool = True) -> Caller:
        """Return who sends a request.

        Parameters
        ----------
        headers : mapping
            Of the request: ``Authorization`` with ``Bearer KEY``, or ``Basic`` with the key as the
            password, or ``X-API-Key``.
        address : str
            Of the client.
        counts : bool
            Whether the request counts for the rate.

        Raises
        ------
        Unauthorized, Refused
            The key is missing or unknown, or used too often.
        """
        if not self._keys:
            return Caller(address)
        digest = hashlib.sha256(_presented(headers)).digest()
        # Every key is compared, so that time tells nothing of which ones there are.
        found = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if not found:
            raise Unauthorized("a key is needed, as in Authorization: Bearer KEY")
        if counts:
            found[0].take()
        return found[0].caller


def _presented(headers: Mapping[str, str]) -> bytes:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return headers.get("x-api-key", "").encode()


def _read(number: int, line: str) -> _Key:
    name, *rest = line.split()
    settings = dict(re.findall(r"(priority|rate)=(-?[0-9.]+)", " ".join(rest[1:])))
    try:
        if not rest or len(settings) != len(rest) - 1:
            raise ValueError
        secret, hashed = rest[0], rest[0].startswith(HASHED)
        digest = (
            bytes.fromhex(secret.removeprefix(HASHED))
            if hashed
            else hashlib.sha256(secret.encode()).digest()
        )
        rate = float(settings["rate"]) if "rate" in settings else None
        if len(digest) != hashlib.sha256().digest_size or (rate is not None and rate < 1):
            raise ValueError
        return _Key(digest, Caller(name, int(settings.get("priority", "0"))), rate)
    except ValueError as error:
        raise RequestError(
            f"line {number} must look like NAME KEY [priority=N] [rate=N], with a rate from 1 on, "
            "and 64 digits after sha256:"
        ) from error
