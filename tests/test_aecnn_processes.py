"""Groups of child processes, and the lock of a folder, with real processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import aecnn.processes
from aecnn.processes import Command, FolderLock, ProcessError, ProcessGroup, run_until_ended, stop_holder
from centre_in_folder import eventually

SLEEP = "import time; time.sleep(600)"
linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")


def _command(tmp_path, code, name="child", **settings):
    return Command(name, [sys.executable, "-c", code], os.environ, tmp_path / "logs" / f"{name}.log", **settings)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(aecnn.processes, "FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(aecnn.processes, "LONGEST_WAIT_S", 0.2)


@contextlib.contextmanager
def _running(*commands):
    group = ProcessGroup(commands)
    group.start()
    try:
        yield group
    finally:
        group.stop()


def _is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_what_a_child_says_is_in_its_log(tmp_path):
    command = _command(tmp_path, "import sys; print('out'); sys.exit('err')", is_restarted=False)
    with _running(command) as group:
        assert eventually(lambda: group.tend() is not None)
    assert sorted(command.log_file.read_text().split()) == ["err", "out"]


def test_code_that_lies_beside_the_logs_is_not_run(tmp_path):
    command = _command(tmp_path, "print('child')", is_restarted=False)
    planted = command.log_file.parent / "aecnn"
    planted.mkdir(parents=True)
    (planted / "__init__.py").write_text("print('planted')")
    with _running(command) as group:
        assert eventually(lambda: group.tend() is not None)
    assert command.log_file.read_text().split() == ["child"]


def test_a_restart_for_which_the_machine_has_no_room_is_tried_again(tmp_path, quick, monkeypatch):
    real, refusals = subprocess.Popen, iter([BlockingIOError(11, "Resource temporarily unavailable")] * 2)

    def popen(*arguments, **settings):
        for error in refusals:
            raise error
        return real(*arguments, **settings)

    counter = tmp_path / "count"
    with _running(_command(tmp_path, f"open({str(counter)!r}, 'a').write('x')")) as group:
        assert eventually(lambda: counter.exists())
        monkeypatch.setattr(aecnn.processes.subprocess, "Popen", popen)
        assert eventually(lambda: group.tend() is None and len(counter.read_text()) >= 2)
    assert list(refusals) == []


def test_a_child_that_ends_is_started_again_and_again(tmp_path, quick):
    counter = tmp_path / "count"
    code = f"open({str(counter)!r}, 'a').write('x')"
    with _running(_command(tmp_path, code)) as group:

        def three_starts():
            assert group.tend() is None
            return counter.exists() and len(counter.read_text()) >= 3

        eventually(three_starts, timeout_s=60)


@pytest.mark.parametrize(("ends_with", "is_final"), [(0, True), (10, True), (1, False), (-9, False)])
def test_only_a_final_code_ends_the_group(tmp_path, quick, ends_with, is_final):
    end = f"os._exit({ends_with})" if ends_with >= 0 else "os.kill(os.getpid(), 9)"
    marker = tmp_path / "second"
    code = f"import os, pathlib\nm = pathlib.Path({str(marker)!r})\nm.exists() and os._exit(10)\nm.touch()\n{end}"
    with _running(_command(tmp_path, code, final_codes=(0, 10))) as group:
        codes = []
        eventually(lambda: codes.append(group.tend()) or codes[-1] is not None, timeout_s=60)
    assert codes[-1] == (ends_with if is_final else 10), "after a crash it is the second start that ends the group"


def test_waits_grow_and_start_anew_after_a_steady_time(tmp_path, quick, monkeypatch):
    with _running(_command(tmp_path, "raise SystemExit(3)")) as group:
        child = group._children[0]
        waits = []

        def longest():
            group.tend()
            waits.append(child.wait_s)
            return child.wait_s == 0.2

        eventually(longest, timeout_s=60)
        assert sorted(set(waits) - {0.0}) == [0.05, 0.1, 0.2]
        monkeypatch.setattr(aecnn.processes, "STEADY_S", 0.0)
        eventually(lambda: group.tend() or child.wait_s == 0.05, timeout_s=60)


def test_stop_ends_all_even_those_that_do_not_listen(tmp_path, monkeypatch):
    monkeypatch.setattr(aecnn.processes, "END_TIMEOUT_S", 1.0)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    commands = _command(tmp_path, SLEEP, "heeds"), _command(tmp_path, deaf, "deaf")
    with _running(*commands) as group:
        eventually(lambda: commands[1].log_file.read_text())
        pids = group.pids()
    assert not any(_is_alive(pid) for pid in pids.values())


def test_a_program_that_is_not_there_ends_the_child_and_is_told(tmp_path):
    command = Command("nope", ["/nowhere/nope"], os.environ, tmp_path / "nope.log", is_restarted=False)
    with _running(command) as group:
        assert eventually(group.tend) != 0
    assert "No such file" in command.log_file.read_text()


def test_a_log_does_not_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(aecnn.processes, "MAX_LOG_BYTES", 10_000)
    code = "import time\nwhile True:\n    print('x' * 999, flush=True); time.sleep(0.002)"
    command = _command(tmp_path, code)
    with _running(command) as group:
        older = command.log_file.with_name("child.log.1")
        eventually(lambda: group.tend() or (older.exists() and command.log_file.stat().st_size < 10_000))
        eventually(lambda: command.log_file.stat().st_size > 1000, what="more of the log")
        assert command.log_file.read_bytes()[:1] == b"x", "no hole of zeros where the old part was"


SUPERVISOR = """
import os, sys, time
from pathlib import Path
from aecnn.processes import Command, FolderLock, ProcessGroup, run_until_ended
folder = Path(sys.argv[1])
lock = FolderLock(folder / "lock")
lock.acquire(what="test")
commands = [Command(n, [sys.executable, "-c", "import time; time.sleep(600)"], os.environ, folder / n) for n in "ab"]
group = ProcessGroup(commands)
def tell():
    (folder / "part").write_text(" ".join(str(pid) for pid in group.pids().values()))
    (folder / "part").rename(folder / "pids")
sys.exit(run_until_ended(group, on_tick=tell, interval_s=0.05))
"""


@contextlib.contextmanager
def _supervisor(folder):
    process = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(folder)])
    try:
        eventually(lambda: (folder / "pids").exists() and len((folder / "pids").read_text().split()) == 2)
        yield process, [int(pid) for pid in (folder / "pids").read_text().split()]
    finally:
        process.kill()
        process.wait()


@linux
def test_kill_9_of_the_parent_takes_its_children_with_it(tmp_path):
    with _supervisor(tmp_path) as (process, children):
        assert all(_is_alive(pid) for pid in children)
        process.kill()
        process.wait()
        eventually(lambda: not any(_is_alive(pid) for pid in children), timeout_s=20)
        assert FolderLock(tmp_path / "lock").holder() is None, "the next one may start"


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_group_in_order(tmp_path, number):
    with _supervisor(tmp_path) as (process, children):
        begin = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=30) == 130
        assert time.monotonic() - begin < 10
        assert not any(_is_alive(pid) for pid in children)


def test_signals_mean_again_what_they_meant(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    group = ProcessGroup([_command(tmp_path, "raise SystemExit(7)", is_restarted=False)])
    assert run_until_ended(group, on_tick=lambda: None, interval_s=0.05) == 7
    assert signal.getsignal(signal.SIGTERM) == before


@linux
def test_stop_holder_stops_it_and_says_whether_there_was_one(tmp_path):
    lock = FolderLock(tmp_path / "lock")
    assert stop_holder(lock, timeout_s=1) is False
    with _supervisor(tmp_path) as (process, _):
        assert lock.holder() == process.pid
        reaped = threading.Thread(target=process.wait)
        reaped.start()
        assert stop_holder(lock, timeout_s=30) is True
        reaped.join()
    assert lock.holder() is None


def test_one_folder_has_one_holder(tmp_path):
    first, second = FolderLock(tmp_path / "state" / "lock"), FolderLock(tmp_path / "state" / "lock")
    first.acquire(what="this")
    with pytest.raises(ProcessError, match=rf"this runs already \(process {os.getpid()}\)"):
        second.acquire(what="this")
    first.release()
    second.acquire(what="this")
    assert first.holder() == os.getpid()
    second.release()
    assert first.holder() is None


def test_who_only_asks_keeps_nobody_from_the_lock(tmp_path):
    lock, path = FolderLock(tmp_path / "lock"), tmp_path / "lock"
    path.touch()
    is_over = threading.Event()

    def ask():
        while not is_over.is_set():
            FolderLock(path).holder()

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        for _ in range(50):
            lock.acquire(what="test")
            lock.release()
    finally:
        is_over.set()
        asker.join()


def test_a_lock_whose_holder_has_not_told_its_name_is_never_signalled(tmp_path):
    path = tmp_path / "lock"
    lock = FolderLock(path)
    lock.acquire(what="test")
    for content in ("", "{", json.dumps({"process": 1})):
        path.write_text(content)
        assert FolderLock(path).holder() is None
        assert stop_holder(FolderLock(path), timeout_s=1) is False
    lock.release()
