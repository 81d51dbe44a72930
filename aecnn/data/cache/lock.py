"""One process at a time changes a cache."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aecnn.data.cache.index import LOCK_NAME
from aecnn.errors import CacheError


@contextmanager
def locked(folder: Path, *, exclusive: bool) -> Iterator[None]:
    """Holds a cache: alone in order to change it, or with others who only read.

    Raises:
        CacheError: Somebody is changing it, or reading where it is to be changed.
    """
    path = folder / LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT if exclusive else os.O_RDONLY, 0o666)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CacheError(f"{folder}: another `aecnn cache` is at work here: wait until it has ended") from error
        yield
    finally:
        os.close(descriptor)
