"""Write files and folders completely or not at all, and keep them while they are in use.

What is being written has a hidden name beside its target and is renamed in the end. Its writer
holds a lock on it, which the system drops with the process, however that ends: what has such a name
and no lock was left by a process that was killed.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".bksdm-partial-"
"""How the names of unfinished files and folders begin."""
_OPEN_FILE = re.compile(
    r"/dev/(std(in|out|err)|fd/\d+)|/proc/(self|thread-self|\d+)(/task/\d+)?/fd/\d+"
)
# Of this process; what forks is another one.
_unfinished: set[Path] = set()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unfinished.clear)
NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def require_regular(path: Path) -> None:
    """Check that a path is a regular file, which has an end; a device may have none.

    Opening a pipe would wait for a writer.

    Raises
    ------
    OSError
        It is missing, or no regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading that :func:`require_regular` accepts."""
    require_regular(path)
    return path.open("rb")


def read_regular(path: Path) -> bytes:
    """Return the content of a file that :func:`open_regular` opens."""
    with open_regular(path) as stream:
        return stream.read()


def write_file(path: Path, content: bytes) -> None:
    """Write a file, or the link's target, device or pipe of that name.

    A regular file is written beside its target and renamed, so that a reader sees the old content
    or the new; it keeps its permissions. Anything else is written through.

    Raises
    ------
    OSError
        It cannot be written; the old content is still there.
    """
    try:
        old: int | None = path.stat().st_mode
    except FileNotFoundError:
        old = None
    target = Path(os.path.realpath(path))
    if (old is not None and not stat.S_ISREG(old)) or names_open_file(path):
        with path.open("wb") as stream:
            stream.write(content)
        return
    partial, lock = _create(target.parent, _create_file)
    try:
        partial.write_bytes(content)
        if old is not None:
            partial.chmod(stat.S_IMODE(old))
        partial.replace(target)
    finally:
        _discard(partial, lock)


def names_open_file(path: Path) -> bool:
    """Return whether a path, as ``/dev/stdout``, is a name for a file that a process has open."""
    return _OPEN_FILE.fullmatch(str(path.absolute())) is not None


@contextmanager
def staged(target: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a new folder that becomes ``target`` when the block ends without an error.

    Parameters
    ----------
    target : Path
        In a folder that exists.
    replace : bool
        Whether it may take the place of another, once nobody has that :func:`in_use`.

    Raises
    ------
    FileExistsError
        There is a ``target`` by then that may not be replaced.
    OSError
        Something cannot be written.
    """
    partial, lock = _create(target.parent, Path.mkdir)
    try:
        yield partial
        if replace and target.is_dir():
            with alone(target):
                old, old_lock = _create(target.parent, Path.mkdir)
                try:
                    target.rename(old)
                    partial.rename(target)
                finally:
                    _discard(old, old_lock)
            return
        try:
            partial.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise FileExistsError(error.errno, os.strerror(errno.EEXIST), str(target)) from error
    finally:
        _discard(partial, lock)


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Yield a new hidden folder that is gone after the block.

    What processes that were killed have left beside it is removed first.

    Raises
    ------
    OSError
        It cannot be made.
    """
    clear_abandoned(parent)
    folder, lock = _create(parent, Path.mkdir)
    try:
        yield folder
    finally:
        _discard(folder, lock)


def clear_abandoned(folder: Path) -> None:
    """Remove remains of killed processes in a folder; those that cannot be removed stay."""
    for path in folder.glob(f"{PARTIAL}*"):
        _remove(path, path)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Run the block in one thread of one process at a time for this folder; others wait."""
    lock = _open(folder, wait=True, shared=False)
    try:
        yield
    finally:
        _release(lock)


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keep a folder from being removed or replaced while the block runs.

    Raises
    ------
    OSError
        There is no such folder.
    """
    while True:
        lock = _open(folder, wait=True, shared=True)
        if lock is None or _still(folder, lock):
            break
        # Replaced while this one waited; removed if there is no other.
        os.close(lock)
    try:
        yield
    finally:
        _release(lock)


def remove_unused(folder: Path) -> bool:
    """Remove a folder that no process has :func:`in_use`; return whether it is gone.

    A link in its place is removed, not what it leads to.
    """
    return _remove(folder, folder.with_name(PARTIAL + secrets.token_hex(8)))


def _remove(path: Path, hidden: Path) -> bool:
    """Remove a file or folder that is not locked, after renaming it out of the way."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
        return True
    try:
        lock = _open(path, wait=False, shared=False)
    except OSError:
        return not path.exists()
    try:
        if lock is None or not _still(path, lock):
            return False
        if hidden != path:
            path.rename(hidden)
        if hidden.is_dir():
            shutil.rmtree(hidden)
        else:
            hidden.unlink()
        return True
    except OSError:
        return False
    finally:
        _release(lock)


def _create(parent: Path, make: Callable[[Path], None]) -> tuple[Path, int | None]:
    """Create an unfinished file or folder; return its path and the handle of its lock."""
    while True:
        path = parent / (PARTIAL + secrets.token_hex(8))
        _unfinished.add(path)
        make(path)
        # Somebody who clears up may be faster than the lock.
        with contextlib.suppress(FileNotFoundError):
            lock = _open(path, wait=True, shared=False)
            if lock is None or _still(path, lock):
                return path, lock
            os.close(lock)
        _unfinished.discard(path)


def _discard(path: Path, lock: int | None) -> None:
    """Remove what is left of an unfinished file or folder, and release its lock."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    _unfinished.discard(path)
    _release(lock)


@atexit.register
def _discard_unfinished() -> None:
    """Remove what an interrupt kept from being removed: it may come before any ``try`` begins."""
    for path in tuple(_unfinished):
        with contextlib.suppress(OSError):
            _discard(path, None)


def _create_file(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _open(path: Path, wait: bool, shared: bool) -> int | None:
    """Open and lock a file or folder; None where the system, or a network's disk, has no locks.

    Raises
    ------
    OSError
        It cannot be opened, or another holds it and ``wait`` is False.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in NO_LOCKS:
            return None
        raise
    return descriptor


def _release(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _still(path: Path, lock: int) -> bool:
    """Return whether the locked file is still the one at its path."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(lock))
    return False
