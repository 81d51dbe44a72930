"""One process at a time changes a cache, and nobody opens it meanwhile."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aecnn.data.cache.index import LOCK_NAME
from aecnn.errors import CacheError

PATIENCE_S = 10.0  # for readers, who hold a cache only while they open it; `verify` alone takes longer
RETRY_S = 0.1


@contextmanager
def locked(folder: Path, *, exclusive: bool) -> Iterator[None]:
    """Holds a cache: alone in order to change it, or with others who only read.

    A copy of a cache without its lock, or one on a disk that knows no locks, is read all the same.

    Raises:
        CacheError: Somebody is changing it, or reading for long where it is to be changed.
    """
    path = folder / LOCK_NAME
    if not exclusive and not path.exists():
        yield
        if path.exists():  # whoever changes a cache makes the lock first
            raise _at_work(folder)
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT if exclusive else os.O_RDONLY, 0o666)
    try:
        if exclusive:
            _hold_alone(descriptor, folder)
        else:
            with suppress(OSError):  # no locks on this disk
                _share(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _hold_alone(descriptor: int, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            _share(descriptor, folder)  # refused where somebody changes it; else those at work only read
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            if time.monotonic() > deadline:
                raise CacheError(
                    f"{folder}: is being read, by a run that starts or by `aecnn cache --verify`: wait for its end"
                ) from error
            time.sleep(RETRY_S)
        else:
            return


def _share(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _at_work(folder) from error


def _at_work(folder: Path) -> CacheError:
    return CacheError(f"{folder}: another `aecnn cache` is at work here: wait until it has ended")
