"""The worker: it begins only when all is in order, outlives its SuperNode, and ends at once when asked."""

import json
import logging
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from flwr.app import Message, RecordDict

from aecnn import contract
from client import worker
from client.app import app as installed_app
from client.desk import Desk
from client.flower import NodeLostError
from client.log_lines import LineFormatter
from client.progress import Progress
from conftest import PROJECT
from hospital_in_process import RUN_ID, centre_message, hospital_folder

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} (INFO|WARNING|ERROR) |  \| ")


@pytest.fixture
def site(phantom_64px, tmp_path):
    paths = hospital_folder(tmp_path / "st-mary", phantom_64px)
    paths.secret.write_bytes(b"s" * 32)
    return paths


class Tasks:
    """A SuperNode that has some tasks, and may be gone when the answer comes."""

    def __init__(self, *messages, is_lost=False):
        self.messages, self.is_lost, self.answers, self.waits = list(messages), is_lost, [], 0

    @contextmanager
    def next_task(self):
        """Gives the next."""
        if not self.messages:
            yield None
            return
        self.message = self.messages.pop(0)
        yield self

    def answer(self, reply: Message) -> None:
        """Takes the reply, or is not there any more."""
        if self.is_lost:
            raise NodeLostError("the SuperNode no longer knows the task")
        self.answers.append(reply)

    def wait(self) -> None:
        """Counts."""
        self.waits += 1


def _answer_next(tasks, desk, site):
    """The worker's step; gives what it did, and which run it takes to be complete."""
    idle = Progress(site.status, None)
    return worker._answer_next(tasks, desk, paths=site, idle=idle), idle.completed


def test_tasks_are_answered_one_by_one_and_an_empty_queue_is_waited_on(site):
    desk, tasks = Desk(site, installed_app), Tasks(centre_message(contract.JOIN), centre_message("query.shell"))
    assert [_answer_next(tasks, desk, site)[0] for _ in range(3)] == [True, True, False]
    assert [reply.has_content() for reply in tasks.answers] == [True, False]
    assert tasks.waits == 1


def test_a_supernode_that_is_gone_costs_the_sending_and_not_the_worker(site, monkeypatch, caplog):
    monkeypatch.setattr(worker, "NODE_LOST_WAIT_S", 0.0)
    assert _answer_next(Tasks(centre_message(contract.JOIN), is_lost=True), Desk(site, installed_app), site)[0]
    assert "no longer knows the task" in caplog.text


def test_a_run_is_complete_with_its_delivery_and_no_sooner(site):
    def desk(message):
        """Takes all."""
        return Message(RecordDict(), reply_to=message)

    class Takes:
        """A desk that has an answer to everything."""

        answer = staticmethod(desk)

    for kind, is_complete in ((contract.TRAIN, False), (contract.EVALUATE, False), (contract.DELIVER, True)):
        _, completed = _answer_next(Tasks(centre_message(kind)), Takes(), site)
        assert completed == ({"run": "small", "run_id": RUN_ID, "models": None} if is_complete else None)
    (site.models / f"small-{RUN_ID}").mkdir(parents=True)
    _, completed = _answer_next(Tasks(centre_message(contract.DELIVER)), Takes(), site)
    assert completed["models"] == f"models/small-{RUN_ID}"
    _, completed = _answer_next(Tasks(centre_message(contract.DELIVER)), Desk(site, installed_app), site)
    assert completed is None  # it was refused: the run was never answered here


def test_a_log_line_holds_no_control_character_and_cannot_be_forged_by_an_exceptions_text():
    forged = "2026-01-01 00:00:00+0000 INFO all is well"
    try:
        raise RuntimeError(f"\x1b[31mred\n{forged}\r{forged}\u2028{forged}")
    except RuntimeError:
        record = logging.LogRecord("n", logging.ERROR, "f", 1, "It failed: %s", (f"a\x07\n{forged}",), sys.exc_info())
    first, *more = LineFormatter().format(record).split("\n")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} ERROR It failed: a.", first)
    assert sum(forged in line for line in more) == 4
    assert all(line.startswith("  | ") and line.isprintable() for line in more)


def test_another_inside_of_flower_keeps_the_worker_closed_with_a_sentence(site, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "client.flower", None)
    assert worker.main(site.folder) == worker.EXIT_FAULTY
    assert "install flwr 1.39 again; until then nothing is answered" in caplog.text


def test_a_folder_that_is_not_in_order_keeps_the_worker_closed_with_a_sentence(site, caplog):
    site.secret.unlink()
    assert worker.main(site.folder) == worker.EXIT_FAULTY
    assert "secret" in caplog.text
    site.secret.write_bytes(b"s" * 32)
    site.audit_log.write_text("rubbish\n")
    assert worker.main(site.folder) == worker.EXIT_FAULTY
    assert "not one this client wrote" in caplog.text


@pytest.mark.slow
def test_the_worker_waits_for_a_supernode_that_is_not_there_and_ends_at_once_when_asked(site):
    command = [sys.executable, "-P", "-m", "client.worker", str(site.folder)]
    with subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 120
        while not site.status.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert json.loads(site.status.read_text())["phase"] == "idle"
        time.sleep(0.5)
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=20) == 0
        assert all(LINE.match(line) for line in child.stderr.read().splitlines())
    assert json.loads(site.status.read_text())["phase"] == "stopped"
