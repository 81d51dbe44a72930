"""Child processes that belong together: started, watched, restarted after a wait, and ended together.

A child dies with its parent, even when the parent is killed (Linux; elsewhere it may be left behind).
"""

import ctypes
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from aecnn.errors import AecnnError

log = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
STEADY_S = 120.0  # a child that ran so long starts anew with the first wait
END_TIMEOUT_S = 15.0
LOCK_PATIENCE_S = 1.0  # who only asks for the holder takes the lock for an instant
MAX_LOG_BYTES = 20 * 2**20  # of one log; as much again is kept beside it
_PR_SET_PDEATHSIG = 1


class ProcessError(AecnnError):
    """A process of the group that cannot be started, or a folder in use by another one."""


@dataclass(frozen=True)
class Command:
    """One child: what to run and where its output goes."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    log_file: Path
    is_restarted: bool = True  # False: its end is the end of the group
    final_codes: Collection[int] = ()  # exit codes that end the group although it is restarted after all others


@dataclass
class _Child:
    command: Command
    process: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0.0
    wait_s: float = 0.0
    start_again_at: float = 0.0
    num_starts: int = 0


@dataclass
class ProcessGroup:
    """Children that are kept running until one ends for good, or `stop` is called."""

    commands: Sequence[Command]
    _children: list[_Child] = field(default_factory=list)

    def start(self) -> None:
        """Starts every child that is not running yet, in order."""
        self._children = [_Child(command) for command in self.commands]
        for child in self._children:
            _start(child)

    def tend(self) -> int | None:
        """Restarts what ended, when its wait is over, and keeps the logs from growing without end.

        Returns:
            The exit code of a child that ended for good; None before.
        """
        for child in self._children:
            _shorten(child.command.log_file)
            code = None if child.process is None else child.process.poll()
            if child.process is not None and code is not None:
                if not child.command.is_restarted or code in child.command.final_codes:
                    return code
                _plan_restart(child, code)
            elif child.process is None and time.monotonic() >= child.start_again_at:
                try:
                    _start(child)
                except ProcessError as error:  # no room for a process just now, for example
                    _wait(child, ran_s=0.0)
                    log.warning("%s; tried again in %.0f s", error, child.wait_s)
        return None

    def stop(self) -> None:
        """Ends all children, the last started first; those that do not heed SIGTERM are killed."""
        for child in reversed(self._children):
            if child.process is not None and child.process.poll() is None:
                child.process.terminate()
        deadline = time.monotonic() + END_TIMEOUT_S
        for child in reversed(self._children):
            if child.process is None:
                continue
            try:
                child.process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()

    def pids(self) -> dict[str, int | None]:
        """Gives each child's process id, None while it waits for its restart."""
        return {child.command.name: None if child.process is None else child.process.pid for child in self._children}


def _start(child: _Child) -> None:
    command = child.command
    command.log_file.parent.mkdir(parents=True, exist_ok=True)
    with command.log_file.open("ab") as output:
        try:
            child.process = subprocess.Popen(
                _tied_to_this_process(command.arguments),
                env=dict(command.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=command.log_file.parent,
                start_new_session=True,  # Ctrl-C at the terminal reaches the parent alone, which ends them in order
            )
        except OSError as error:
            raise ProcessError(f"{command.name} cannot be started ({error.strerror})") from error
    child.started_at = time.monotonic()
    child.num_starts += 1


def _shorten(log_file: Path) -> None:
    """Moves a long log's content to a file beside it; the child goes on appending to the same file."""
    if log_file.exists() and log_file.stat().st_size > MAX_LOG_BYTES:
        shutil.copyfile(log_file, log_file.with_name(f"{log_file.name}.1"))
        os.truncate(log_file, 0)


def _plan_restart(child: _Child, code: int) -> None:
    ran_s = time.monotonic() - child.started_at
    _wait(child, ran_s=ran_s)
    log.warning(
        "%s ended with code %d after %.0f s and is started again in %.0f s (%s)",
        child.command.name,
        code,
        ran_s,
        child.wait_s,
        child.command.log_file,
    )


def _wait(child: _Child, *, ran_s: float) -> None:
    longer_s = 0.0 if ran_s > STEADY_S else min(child.wait_s * 2, LONGEST_WAIT_S)
    child.wait_s = max(FIRST_WAIT_S, longer_s)
    child.process, child.start_again_at = None, time.monotonic() + child.wait_s


def _tied_to_this_process(arguments: Sequence[str]) -> list[str]:
    # -P: the folder of the logs, where a child starts, holds none of the code it runs.
    return [sys.executable, "-P", "-m", "aecnn.processes", str(os.getpid()), *arguments]


def _run_tied(parent: int, arguments: Sequence[str]) -> None:
    """Becomes the command, after asking the kernel to end it with its parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(0)  # the parent ended before the kernel was asked
    os.execv(arguments[0], list(arguments))  # noqa: S606  no shell is wanted


class FolderLock:
    """Keeps a folder to one process, for as long as that process lives; says who holds it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def acquire(self, *, what: str) -> None:
        """Takes the lock and writes this process's id into it.

        Raises:
            ProcessError: Another process holds it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+", encoding="utf-8")
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while not _try_lock(file):
            if time.monotonic() > deadline:
                file.close()
                raise ProcessError(f"{what} runs already (process {self.holder()}): stop it first")
            time.sleep(0.05)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid()}))
        file.flush()
        self._file = file

    def release(self) -> None:
        """Gives the lock back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def holder(self) -> int | None:
        """Gives the process id of who holds the lock, None where nobody does (or nobody has told yet who)."""
        try:
            with self._path.open("r+", encoding="utf-8") as file:
                if _try_lock(file, kind=fcntl.LOCK_SH):
                    return None
                return int(json.loads(file.read())["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _try_lock(file: IO[str], *, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def stop_holder(lock: FolderLock, *, timeout_s: float) -> bool:
    """Asks the process that holds a lock to end, and waits for it.

    Returns:
        Whether there was one.

    Raises:
        ProcessError: It belongs to another user, or did not end in time.
    """
    pid = lock.holder()
    if pid is None:
        return False
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return False  # it ended just now
    except PermissionError:
        raise ProcessError(f"process {pid} belongs to another user: stop it as that user") from None
    deadline = time.monotonic() + timeout_s
    while lock.holder() is not None:
        if time.monotonic() > deadline:
            raise ProcessError(f"process {pid} did not end in {timeout_s:.0f} s")
        time.sleep(0.1)
    return True


def run_until_ended(group: ProcessGroup, *, on_tick: Callable[[], None], interval_s: float = 0.5) -> int:
    """Keeps a group running until a child ends for good, or SIGTERM or Ctrl-C comes; ends all of it.

    Returns:
        That child's exit code; 130 after a signal.
    """
    stopped = {"by_signal": False}

    def stop(_number: int, _frame: object) -> None:
        stopped["by_signal"] = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        group.start()
        while not stopped["by_signal"]:
            code = group.tend()
            on_tick()
            if code is not None:
                return code
            time.sleep(interval_s)
        return 130
    finally:
        group.stop()
        for number, handler in previous.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    _run_tied(int(sys.argv[1]), sys.argv[2:])
