"""Several processes that work off a list of tasks, and end when the process that started them ends, however it ends.

A pool of `concurrent.futures` leaves its processes behind when its parent is killed. Here each worker talks over a pipe
of its own, which breaks at that moment.
"""

import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

from aecnn.errors import CacheError
from aecnn.progress import OnImages, OnProgress

Task = TypeVar("Task")
Result = TypeVar("Result")

REPORT_EVERY_S = 0.1


def work_off(
    tasks: Sequence[Task],
    work: Callable[[Task, OnImages], Result],
    *,
    num_workers: int,
    on_images: OnImages,
) -> Generator[Result, None, None]:
    """Gives the results as they come, in any order.

    Args:
        tasks: What to do; the largest should come first.
        work: Does one task and tells of its progress. With several workers it and the tasks must be picklable, and the
            caller's main module importable (``spawn``).
        num_workers: Processes; 1 works in this process.
        on_images: Called with the number of images dealt with since its last call.

    Raises:
        CacheError: A worker was killed.
        Exception: Whatever `work` raised.
    """
    if num_workers == 1 or len(tasks) < 2:
        yield from (work(task, on_images) for task in tasks)
        return
    waiting = deque(tasks)
    workers = _start(work, min(num_workers, len(tasks)))
    try:
        for connection in workers:
            _give(connection, waiting.popleft())
        num_open = len(tasks)
        while num_open:
            for ready in wait(list(workers)):
                connection = cast(Connection, ready)
                kind, value = _take(connection)
                if kind == "images":
                    on_images(value)
                    continue
                if kind == "error":
                    raise value
                num_open -= 1
                if waiting:
                    _give(connection, waiting.popleft())
                yield value
    finally:
        _end(workers)


def _start(work: Callable[[Any, OnImages], Any], count: int) -> dict[Connection, BaseProcess]:
    context = get_context("spawn")
    workers: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(work, theirs), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = process
    except BaseException:
        _end(workers)
        raise
    return workers


def _end(workers: dict[Connection, BaseProcess]) -> None:
    for connection, process in workers.items():
        connection.close()
        process.terminate()
    for process in workers.values():
        process.join()
        process.close()


def _give(connection: Connection, task: object) -> None:
    with suppress(ConnectionError):  # the worker is gone: taking its answer says so
        connection.send(task)


def _take(connection: Connection) -> tuple[str, Any]:
    try:
        answer: tuple[str, Any] = connection.recv()
    except (EOFError, ConnectionError) as error:
        raise CacheError(
            "a process that decodes images was ended from outside, perhaps for want of memory: run the command again, "
            "with fewer workers; what was finished is kept"
        ) from error
    return answer


def _serve(work: Callable[[Any, OnImages], Any], connection: Connection) -> None:
    """Works off tasks until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends its workers
    report = _Report(connection)
    with closing(connection), suppress(EOFError, ConnectionError):
        while True:
            task = connection.recv()
            try:
                answer: tuple[str, Any] = ("result", work(task, report.add))
            except (ConnectionError, MemoryError):  # the parent is gone, or learns of it when this process ends
                raise
            except OSError as error:
                answer = ("error", error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it
                failed = CacheError(f"a process that decodes images failed: {type(error).__name__}: {error}")
                failed.add_note(traceback.format_exc())
                answer = ("error", failed)
            report.send()
            connection.send(answer)


class _Report:
    """Tells the parent now and then how many images were dealt with."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._num_images = 0
        self._sent_at = time.monotonic()

    def add(self, num_images: int) -> None:
        self._num_images += num_images
        if time.monotonic() - self._sent_at >= REPORT_EVERY_S:
            self.send()

    def send(self) -> None:
        if self._num_images:
            self._connection.send(("images", self._num_images))
        self._num_images, self._sent_at = 0, time.monotonic()


class Progress:
    """Counts images, from several threads too."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self._total, self._on_progress = total, on_progress
        self._done = 0
        self._lock = threading.Lock()

    def add(self, num_images: int) -> None:
        """Counts some more images."""
        with self._lock:
            self._done += num_images
            if self._on_progress is not None:
                self._on_progress(self._done, self._total)

    def go_to(self, done: int) -> None:
        """Counts so many images in all."""
        self.add(done - self._done)
