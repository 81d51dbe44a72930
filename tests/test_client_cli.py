"""``aecnn-client`` as a hospital's engineer meets it: sentences, exit codes, and a client that starts and ends."""

import contextlib
import json
import os
import re
import signal
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer

import client.cli
from aecnn.processes import FolderLock
from centre_in_folder import eventually, free_port
from client.audit_log import NOTE, AuditLog
from client.state import SiteState
from hospital_in_folder import aecnn_client, client_started, federation_file, make_hospital

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} (INFO|WARNING|ERROR) ")


@pytest.fixture
def hospital(phantom_64px, tmp_path):
    """A hospital whose centre does not run, on free ports."""
    federation = federation_file(tmp_path / "federation.yaml", address=f"127.0.0.1:{free_port()}")
    return make_hospital(tmp_path / "site", phantom_64px, federation=federation, local_port=str(free_port()))


def _status(paths):
    return json.loads(aecnn_client("status", "-f", paths.folder, "--json")[0])


def test_every_command_says_what_it_does_and_every_option_what_it_is():
    commands = typer.main.get_command(client.cli.app).commands
    assert set(commands) == {
        *("init", "request", "rotate-key", "check", "start", "status", "stop", "pause", "resume", "withdraw"),
        *("audit", "budget", "models"),
    }
    for name, command in commands.items():
        assert len(command.help.splitlines()[0]) > 40, name
        options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
        assert all(option.help for option in options), name


def test_init_without_a_terminal_names_every_flag_that_is_missing(tmp_path):
    _, told = aecnn_client("init", tmp_path / "site", "--device", "cpu", code=2)
    assert all(f"--{name} is missing" in told for name in ("federation", "name", "data"))
    assert not (tmp_path / "site").exists()


def test_init_tells_what_to_do_next_and_reads_out_the_key(phantom_64px, tmp_path):
    federation = federation_file(tmp_path / "federation.yaml")
    options = ("--federation", federation, "--name", "st-mary", "--data", phantom_64px)
    shown, told = aecnn_client("init", tmp_path / "a", *options)
    request = json.loads((tmp_path / "a" / "enrolment-request.json").read_text())
    assert f"st-mary declares {request['num_images']} images of {request['num_patients']} patients" in shown
    assert "telephone" in shown
    assert told == ""
    shown, _ = aecnn_client("init", tmp_path / "b", *options, "--json")
    document = json.loads(shown)
    assert document["request"] == json.loads((tmp_path / "b" / "enrolment-request.json").read_text())
    assert document["request"]["public_key"] != request["public_key"]
    aecnn_client("init", tmp_path / "a", *options, code=2)


def test_init_ends_with_1_where_the_data_cannot_be_read_yet(tmp_path):
    (tmp_path / "data").mkdir()
    federation = federation_file(tmp_path / "federation.yaml")
    options = ("--federation", federation, "--name", "st-mary", "--data", tmp_path / "data")
    _, told = aecnn_client("init", tmp_path / "site", *options, code=1)
    assert "aecnn-client request" in told
    assert (tmp_path / "site" / "site.yaml").is_file()
    aecnn_client("request", "-f", tmp_path / "site", code=2)


def test_request_counts_anew(hospital):
    before = json.loads(hospital.request.read_text())
    hospital.site.write_text(hospital.site.read_text().replace("  # patients_file: null", "  patients_file: few.txt"))
    (hospital.folder / "few.txt").write_text("1\n2\n3\n4\n5\n6\n")
    shown, _ = aecnn_client("request", "-f", hospital.folder, "--json")
    after = json.loads(shown)
    assert after == json.loads(hospital.request.read_text())
    assert 0 < after["num_patients"] <= 6 < before["num_patients"]
    assert after["public_key"] == before["public_key"]


def test_pause_resume_and_withdrawal_are_noted_for_the_worker_and_shown(hospital):
    assert _status(hospital)["paused_since"] is None
    aecnn_client("pause", "-f", hospital.folder)
    assert SiteState(hospital.database).paused_since() is not None
    assert "pauses since" in aecnn_client("status", "-f", hospital.folder)[0]
    assert "pauses already, since 2" in aecnn_client("pause", "-f", hospital.folder)[0]
    AuditLog(hospital.audit_log, SiteState(hospital.database)).append(
        {"direction": "in", "decision": "received", "kind": "query", "run": "chest", "run_id": "0123456789abcdef"}
    )
    _, told = aecnn_client("withdraw", "-f", hospital.folder, "--run", "chst", "--yes", code=2)
    assert "'chst' is no run that asked" in told
    assert "0123456789abcdef (chest)" in told
    aecnn_client("withdraw", "-f", hospital.folder, "--run", "chest", "--yes")
    shown, _ = aecnn_client("resume", "-f", hospital.folder)
    assert "resume --rejoin" in shown
    state = SiteState(hospital.database)
    assert state.paused_since() is None
    assert (state.is_withdrawn("0123456789abcdef"), state.is_withdrawn("f" * 16)) == (True, False)
    assert "known run   chest (0123456789abcdef)" in aecnn_client("status", "-f", hospital.folder)[0]
    assert "from run chest (0123456789abcdef) since 2" in aecnn_client("status", "-f", hospital.folder)[0]
    assert _status(hospital)["runs"] == {"0123456789abcdef": "chest"}
    assert "there was no pause to end" in aecnn_client("resume", "-f", hospital.folder)[0]
    aecnn_client("withdraw", "-f", hospital.folder, "--yes")
    assert state.is_withdrawn("f" * 16)
    aecnn_client("resume", "-f", hospital.folder, "--rejoin")
    assert _status(hospital)["withdrawn"] == {}


def test_the_status_of_a_faulty_folder_says_the_fault_and_all_else(hospital):
    SiteState(hospital.database).pause()
    assert "fault" not in aecnn_client("status", "-f", hospital.folder)[0]
    hospital.site.write_text(hospital.site.read_text().replace("device:", "devise:"))
    shown, _ = aecnn_client("status", "-f", hospital.folder, code=1)
    for told in ("hospital    st-mary", "did you mean 'device'", "client      does not run", "pauses since"):
        assert told in shown
    document = json.loads(aecnn_client("status", "-f", hospital.folder, "--json", code=1)[0])
    assert "devise" in document["faults"][0]
    hospital.site.write_text("name: [")
    assert "site.yaml does not say it" in aecnn_client("status", "-f", hospital.folder, code=1)[0]


def test_a_withdrawal_that_nobody_confirms_is_none(hospital):
    _, told = aecnn_client("withdraw", "-f", hospital.folder, code=2)
    assert "--yes" in told
    assert _status(hospital)["withdrawn"] == {}


def test_a_folder_that_is_none_of_ours_is_named_and_stays_empty(tmp_path):
    for command in (("pause",), ("resume",), ("withdraw", "--yes"), ("audit",), ("status",), ("start",)):
        _, told = aecnn_client(*command, "-f", tmp_path, code=2)
        assert str(tmp_path) in told
    assert list(tmp_path.iterdir()) == []


def test_the_audit_is_whole_until_somebody_edits_it(hospital):
    log = AuditLog(hospital.audit_log, SiteState(hospital.database))
    for decision in ("one", "two", "three"):
        log.append({"direction": NOTE, "decision": decision})
    shown, _ = aecnn_client("audit", "-f", hospital.folder)
    assert "whole" in shown
    document = json.loads(aecnn_client("audit", "-f", hospital.folder, "--json")[0])
    assert document["problems"] == []
    assert [entry["reason"] for entry in document["entries"]] == ["one", "two", "three"]
    assert {(entry["direction"], entry["decision"]) for entry in document["entries"]} == {("note", "note")}
    today, tomorrow = (f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%d}" for days in (-1, 1))
    for since, count in ((today, 3), (tomorrow, 0)):
        document = json.loads(aecnn_client("audit", "-f", hospital.folder, "--since", since, "--json")[0])
        assert len(document["entries"]) == count
    hospital.audit_log.write_bytes(hospital.audit_log.read_bytes().replace(b'"two"', b'"owt"'))
    shown, _ = aecnn_client("audit", "-f", hospital.folder, code=1)
    assert "line 2" in shown
    aecnn_client("audit", "-f", hospital.folder, "--begin-anew")
    assert "whole" in aecnn_client("audit", "-f", hospital.folder)[0]


def test_delivered_models_are_listed_by_run(hospital):
    assert "no model was delivered" in aecnn_client("models", "-f", hospital.folder)[0]
    run = hospital.models / "chest-0123456789abcdef"
    run.mkdir(parents=True)
    (run / "global.safetensors").write_bytes(b"12345")
    document = json.loads(aecnn_client("models", "-f", hospital.folder, "--json")[0])
    assert document == {"models": {str(run): {"global.safetensors": 5}}}
    assert "global.safetensors: 5 bytes" in aecnn_client("models", "-f", hospital.folder)[0]


@pytest.mark.parametrize("fault", ["site file", "data", "key", "open key", "secret", "policy"])
def test_start_refuses_a_faulty_folder_before_anything_runs(fault, hospital):
    text = hospital.site.read_text()
    if fault == "site file":
        hospital.site.write_text(text.replace("device:", "devise:"))
    elif fault == "data":
        hospital.site.write_text(text.replace("/data", "/gone"))
    elif fault == "key":
        hospital.key.unlink()
    elif fault == "open key":
        hospital.key.chmod(0o640)
    elif fault == "secret":
        hospital.secret.unlink()
    else:
        hospital.site.write_text(text[: text.index("\npolicy:")])
    _, told = aecnn_client("start", "-f", hospital.folder, code=2)
    said = {
        "site file": "did you mean 'device'",
        "data": "is not there",
        "key": "hospital.key",
        "open key": "chmod 600",
        "secret": "secret is missing",
        "policy": "nothing leaves",
    }
    assert said[fault] in told
    assert not hospital.logs.exists()


def test_start_refuses_a_folder_in_use_and_a_port_in_use(hospital):
    lock = FolderLock(hospital.lock)
    lock.acquire(what="a test")
    try:
        assert "runs already" in aecnn_client("start", "-f", hospital.folder, code=1)[1]
        assert "stop" in aecnn_client("rotate-key", "-f", hospital.folder, code=1)[1]
        assert "stop" in aecnn_client("audit", "--begin-anew", "-f", hospital.folder, code=1)[1]
    finally:
        lock.release()
    port = int(next(line for line in hospital.site.read_text().splitlines() if "local_port" in line).split(": ")[1])
    with socket.create_server(("127.0.0.1", port)):
        assert f"port {port} of this machine is taken" in aecnn_client("start", "-f", hospital.folder, code=1)[1]
    assert FolderLock(hospital.lock).holder() is None


def test_stop_without_a_client_says_so(hospital):
    assert "no client runs" in aecnn_client("stop", "-f", hospital.folder)[0]


@pytest.mark.slow
@pytest.mark.flower
def test_a_client_waits_for_a_centre_that_is_down_and_ends_with_all_its_processes(hospital):
    def what_it_says():
        return (hospital.folder / "start.log").read_text()

    with client_started(hospital) as process:
        eventually(lambda: "the centre does not answer" in what_it_says(), what="the first try")
        status = _status(hospital)
        assert (status["is_running"], status["pid"], status["connection"]) == (True, process.pid, "unreachable")
        children = _descendants(process.pid)
        assert len(children) >= 2
        assert "runs already" in aecnn_client("start", "-f", hospital.folder, code=1)[1]
        assert "stopped" in aecnn_client("stop", "-f", hospital.folder)[0]
        assert process.wait(timeout=60) == 0
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
    assert "\x1b" not in what_it_says()  # a service's journal gets plain lines
    assert [line for line in what_it_says().splitlines() if not LINE.match(line)] == []
    assert _status(hospital)["is_running"] is False


@pytest.mark.slow
@pytest.mark.flower
def test_a_killed_client_leaves_no_process_and_starts_again(hospital):
    with client_started(hospital) as process:
        eventually(lambda: len(_descendants(process.pid)) >= 2, what="the client's processes")
        children = _descendants(process.pid)
        process.kill()
        process.wait(timeout=60)
        eventually(lambda: not any(_is_alive(pid) for pid in children), what="the end of its processes")
    with client_started(hospital) as process:
        eventually(lambda: _status(hospital)["is_running"], what="the second start")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0


def _descendants(pid):
    found = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def _is_alive(pid):
    with contextlib.suppress(OSError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return os.path.exists(f"/proc/{pid}")
