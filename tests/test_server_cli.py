"""``flower-server`` as the centre's operator meets it: folders, enrolment, and sentences about what is wrong."""

import json
import logging
import os
import re
import socket
import stat
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from unittest.mock import patch

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

import server.centre_setup
from aecnn.config import (
    FederationConfig,
    ImagesConfig,
    ModelConfig,
    StrategyConfig,
    TrainingConfig,
    load_config,
    validate_config,
)
from aecnn.contract import code_fingerprint, exchange_schema
from aecnn.enrolment import FederationFile
from aecnn.errors import FederationError
from aecnn.processes import FolderLock
from centre_in_folder import make_centre, new_key, public_pem, write_request
from server.centre import EXIT_RUN_FAILED, write_json
from server.centre_runs import begin_plan, next_run, summary_of
from server.centre_template import server_yaml
from server.certificates import certificate_faults, hosts_of, issue_server_certificate, make_authority, read_issued
from server.cli import _tell_end, app, main
from server.roster import read_roster
from server.settings import CentrePaths, ServerConfig, read_server_config

ANSWERS = ["--name", "chest", "--address", "centre.example:9092"]


@pytest.fixture
def paths(tmp_path):
    return make_centre(tmp_path / "centre")


@pytest.fixture
def call(monkeypatch):
    """Runs the command line in this process; gives its exit code and all it printed."""
    handlers, level = list(logging.root.handlers), logging.root.level

    def run(*arguments, code=0):
        printed, status = StringIO(), 0
        monkeypatch.setattr(sys, "stdin", StringIO())
        command = patch.object(sys, "argv", ["flower-server", *map(str, arguments)])
        with redirect_stdout(printed), redirect_stderr(printed), command:
            try:
                main()
            except SystemExit as end:
                status = end.code or 0
        logging.root.handlers[:], logging.root.level = handlers, level  # a command sets up a process's logging
        assert status == code, printed.getvalue()
        return printed.getvalue()

    return run


# --- init


def test_init_makes_a_folder_that_start_finds_nothing_wrong_with(call, tmp_path):
    shown = call("init", tmp_path / "fed", *ANSWERS, "--host-name", "10.0.0.9")
    paths = CentrePaths(tmp_path / "fed")
    assert "federation.yaml" in shown
    assert "9092" in shown
    config = read_server_config(paths.config)
    assert (config.name, config.address, config.listen) == ("chest", "centre.example:9092", "0.0.0.0:9092")
    issued = read_issued(paths.certificate, paths.key)
    assert certificate_faults(paths.ca_certificate.read_bytes(), issued, host="centre.example") == []
    assert set(hosts_of(issued.certificate)) == {"centre.example", "10.0.0.9", "localhost", "127.0.0.1"}
    federation = load_config(paths.federation, FederationFile)
    assert federation.code_fingerprints == (code_fingerprint(),)
    assert federation.exchanged == exchange_schema()
    assert federation.ca_certificate == paths.ca_certificate.read_text(encoding="ascii")


def test_what_is_secret_is_for_its_owner_alone(call, tmp_path):
    previous = os.umask(0)
    try:
        call("init", tmp_path / "fed", *ANSWERS)
    finally:
        os.umask(previous)
    paths = CentrePaths(tmp_path / "fed")
    for secret in (paths.ca_key, paths.key, paths.secret):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600, secret
    for folder in (paths.folder, paths.state, paths.ca_key.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    public = paths.federation.read_text(encoding="utf-8")
    assert "PRIVATE KEY" not in public
    assert paths.secret.read_text() not in public


def test_without_a_terminal_each_missing_answer_is_named(call, tmp_path):
    told = call("init", tmp_path / "fed", code=2)
    assert "--name" in told
    assert "--address" in told
    assert not (tmp_path / "fed").exists()


def test_at_a_terminal_what_is_missing_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("server.cli._is_asked", lambda: True)
    done = CliRunner().invoke(app, ["init", str(tmp_path / "fed")], input="chest\ncentre.example:9092\n")
    assert done.exit_code == 0, done.output
    assert read_server_config(tmp_path / "fed" / "server.yaml").address == "centre.example:9092"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--name", "a b", "--address", "x:1"], "name"),
        (["--name", "a", "--address", "centre.example"], "address"),
        (["--name", "a", "--address", "x:70000"], "70000"),
        (["--name", "a", "--address", "0.0.0.0:9092"], "that hospitals connect to"),
        (["--name", "a", "--address", "x:8000"], "must not reach"),
    ],
)
def test_answers_that_cannot_be_leave_no_folder(call, tmp_path, arguments, told):
    assert told in call("init", tmp_path / "fed", *arguments, code=2)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_as_it_is(call, tmp_path):
    (tmp_path / "note.txt").write_text("mine", encoding="utf-8")
    assert "holds something" in call("init", tmp_path, *ANSWERS, code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize("is_there", [False, True])
def test_an_init_that_fails_leaves_nothing(tmp_path, monkeypatch, is_there):
    folder = tmp_path / "fed"
    if is_there:
        folder.mkdir()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(server.centre_setup, "write_federation", fail)
    wanted = validate_config(
        {"name": "a", "address": "x:9092", "listen": "0.0.0.0:9092", "local_port": 8000},
        server.centre_setup.NewFederation,
        subject="test",
    )
    with pytest.raises(OSError, match="disk full"):
        server.centre_setup.make_federation(folder, wanted)
    assert list(tmp_path.rglob("*")) == ([folder] if is_there else [])


def test_an_empty_folder_that_is_there_is_filled(call, tmp_path):
    (tmp_path / "fed").mkdir()
    call("init", tmp_path / "fed", *ANSWERS)
    assert sorted(path.name for path in (tmp_path / "fed").iterdir()) == [
        "federation.yaml",
        "hospitals.json",
        "runs",
        "server.yaml",
        "state",
        "tls",
    ]


def test_the_new_server_yaml_names_every_key_there_is(tmp_path):
    text = server_yaml(name="a", address="x:9092", listen="0.0.0.0:9092", local_port=8000)
    models = (ServerConfig, FederationConfig, StrategyConfig, ImagesConfig, ModelConfig, TrainingConfig)
    keys = {key for model in models for key in model.model_fields}
    missing = [key for key in sorted(keys) if not re.search(rf"^\s*(# *)?{key}:", text, re.MULTILINE)]
    assert missing == []
    (tmp_path / "server.yaml").write_text(text, encoding="utf-8")
    read_server_config(tmp_path / "server.yaml")


def test_the_keys_that_are_off_are_fit_to_be_switched_on(tmp_path):
    text = server_yaml(name="a", address="x:9092", listen="0.0.0.0:9092", local_port=8000)
    text = text.replace("# test_data:", "test_data:").replace("#   root:", "  root:")
    text = text.replace("  local_epochs: 1 ", "  # local_epochs: 1 ").replace("# local_steps:", "local_steps:")
    text = text.replace("name: fedavg ", "name: fedavgm ").replace("# server_", "server_")
    (tmp_path / "server.yaml").write_text(text, encoding="utf-8")
    config = read_server_config(tmp_path / "server.yaml")
    assert config.test_data.root == tmp_path / "test-data", "relative to the file, not to the working folder"
    assert config.training.local_steps == 100
    assert config.federation.strategy.server_momentum == 0.9


@pytest.mark.parametrize("address", ["x:1", "centre.hospital.example:9092"])
def test_the_comments_of_a_new_server_yaml_stand_one_below_the_other(address):
    lines = server_yaml(name="a", address=address, listen="0.0.0.0:9092", local_port=8000).splitlines()
    found = [match.end() for line in lines if (match := re.search(r"(?<=\S)  +# ", line))]
    assert len(found) > 20
    assert len(set(found)) == 1


# --- hospitals


def test_enrolling_shows_the_request_and_writes_the_roster(call, paths, tmp_path):
    key = public_pem(new_key())
    request = write_request(tmp_path / "r.json", name="st-anna", public_key=key)
    told = call("enroll", "st-anna", request, "--yes", "-f", paths.folder)
    hospital = read_roster(paths.roster).enrolled["st-anna"]
    assert hospital.public_key == key
    assert hospital.key_fingerprint in told
    assert "120 images of 40 patients" in told
    assert "the same as here" in told
    assert "enrolled so already" in call("enroll", "st-anna", request, "--yes", "-f", paths.folder)


def test_other_code_is_pointed_out(call, paths, tmp_path):
    request = write_request(tmp_path / "r.json", code_fingerprint="0" * 64)
    assert "another than here" in call("enroll", "a", request, "--yes", "-f", paths.folder)


def test_nobody_is_enrolled_under_another_name_or_unconfirmed(call, paths, tmp_path):
    request = write_request(tmp_path / "r.json", name="a")
    assert "request of 'a', not of 'b'" in call("enroll", "b", request, "--yes", "-f", paths.folder, code=2)
    assert "--yes" in call("enroll", "a", request, "-f", paths.folder, code=2)
    assert read_roster(paths.roster).hospitals == ()


def test_a_new_key_needs_replace(call, paths, tmp_path):
    call("enroll", "a", write_request(tmp_path / "1.json"), "--yes", "-f", paths.folder)
    second = write_request(tmp_path / "2.json")
    told = call("enroll", "a", second, "--yes", "-f", paths.folder, code=2)
    assert "--replace" in told
    assert "flower-server revoke a" in told
    assert "rotate-key" in told
    call("enroll", "a", second, "--yes", "--replace", "-f", paths.folder)
    assert read_roster(paths.roster).enrolled["a"].public_key == json.loads(second.read_text())["public_key"]


def test_hospitals_lists_the_enrolled_and_the_revoked(call, paths, tmp_path):
    for name in ("a", "b"):
        call("enroll", name, write_request(tmp_path / "r.json", name=name), "--yes", "-f", paths.folder)
    call("revoke", "b", "-f", paths.folder)
    listed = json.loads(call("hospitals", "--json", "-f", paths.folder))
    assert {row["name"]: row["is_enrolled"] for row in listed["hospitals"]} == {"a": True, "b": False}
    assert listed["is_running"] is False
    shown = call("hospitals", "-f", paths.folder)
    assert "revoked" in shown
    assert read_roster(paths.roster).enrolled["a"].key_fingerprint in shown, "whole, to be read out"
    assert "no hospital of that name" in call("revoke", "c", "-f", paths.folder, code=2)


# --- what keeps a start from starting


def test_faults_are_told_before_anything_starts(call, paths):
    with socket.socket() as taken, patch("server.centre.PORT_PATIENCE_S", 0.0):
        config = read_server_config(paths.config)
        taken.bind(("127.0.0.1", config.local_port))
        taken.listen()
        told = call("start", "-f", paths.folder, code=2)
        assert f"127.0.0.1:{config.local_port}" in told
        assert "local_port" in told
    authority, other = read_issued(paths.ca_certificate, paths.ca_key), make_authority("other")
    for issuer, days, fault in ((other, 397, "not signed by"), (authority, -0.01, "expired")):
        with patch("server.certificates.SERVER_DAYS", days):
            issued = issue_server_certificate(issuer, ["127.0.0.1"])
        paths.certificate.write_bytes(issued.certificate)
        paths.key.write_bytes(issued.key)
        assert fault in call("start", "-f", paths.folder, code=2)
    paths.secret.unlink()
    assert "state/secret is missing" in call("start", "-f", paths.folder, code=2)
    assert not paths.logs.exists(), "no process was started"


def test_a_folder_in_use_is_not_started_twice(call, paths):
    lock = FolderLock(paths.lock)
    lock.acquire(what="test")
    try:
        told = call("start", "-f", paths.folder, code=1)
    finally:
        lock.release()
    assert str(os.getpid()) in told
    assert "stop it first" in told


def test_a_folder_that_is_none_is_told_what_to_do(call, tmp_path):
    for command in ("start", "status", "stop", "runs", "report", "hospitals", "federation", "rotate-certificate"):
        assert "flower-server init" in call(command, "-f", tmp_path, code=2), command


def test_every_fault_of_server_yaml_is_told_at_once(call, paths):
    document = yaml.safe_load(paths.config.read_text(encoding="utf-8"))
    document["federation"]["num_rounds"], document["num_run"] = 0, 2
    paths.config.write_text(yaml.safe_dump(document), encoding="utf-8")
    told = call("start", "-f", paths.folder, code=2)
    assert "num_rounds" in told
    assert "num_run: no such key" in told


# --- life of the folder


def test_a_rotated_certificate_serves_a_new_address_too_and_hospitals_need_nothing(call, paths):
    old, authority = read_issued(paths.certificate, paths.key), paths.ca_certificate.read_bytes()
    text = paths.config.read_text(encoding="utf-8").replace("address: 127.0.0.1", "address: moved.example")
    paths.config.write_text(text, encoding="utf-8")
    told = call("rotate-certificate", "-f", paths.folder, "--host-name", "10.9.9.9")
    new = read_issued(paths.certificate, paths.key)
    assert new.certificate != old.certificate
    assert new.key != old.key
    assert certificate_faults(authority, new, host="moved.example") == []
    assert {"moved.example", "127.0.0.1", "10.9.9.9"} <= set(hosts_of(new.certificate))
    assert "moved.example" in told
    assert stat.S_IMODE(paths.key.stat().st_mode) == 0o600
    call("federation", "-f", paths.folder)
    assert load_config(paths.federation, FederationFile).address.startswith("moved.example:")


def test_federation_yaml_carries_the_accepted_fingerprints(call, paths):
    document = yaml.safe_load(paths.config.read_text(encoding="utf-8"))
    document["accepted_fingerprints"] = ["a" * 64]
    paths.config.write_text(yaml.safe_dump(document), encoding="utf-8")
    assert str(paths.federation) in call("federation", "-f", paths.folder)
    assert load_config(paths.federation, FederationFile).code_fingerprints == (code_fingerprint(), "a" * 64)


def test_status_and_stop_of_a_folder_that_does_not_run(call, paths):
    document = json.loads(call("status", "--json", "-f", paths.folder))
    assert (document["is_running"], document["newest_run"], document["enrolled"]) == (False, None, [])
    assert "does not run" in call("stop", "-f", paths.folder)


def test_status_says_what_each_figure_is_and_by_which_id_hospitals_know_the_run(call, paths):
    config = read_server_config(paths.config)
    begin_plan(paths, num_runs=1, anew=False)
    folder, _ = next_run(paths, config)
    start = {"event": "start", "run": "t", "run_id": "0123456789abcdef", "started_at": "then", "hospitals": {"a": {}}}
    folder.append_event(start)
    folder.append_event({"event": "validation", "round": 1, "macro_auroc": 0.625})
    _end(folder)
    lines = dict(line.split(":", 1) for line in call("status", "-f", paths.folder).splitlines())
    told = {label: text.strip() for label, text in lines.items()}
    assert told["newest run"] == folder.path.name
    assert told["its id at hospitals"] == "0123456789abcdef"
    assert told["validation AUROC"] == "0.6250"
    assert told["enrolled hospitals"] == "none"
    assert "0123456789abcdef" in call("runs", "-f", paths.folder)
    assert json.loads(call("report", "--json", "-f", paths.folder)) == {
        "run": folder.path.name,
        "report": str(folder.path / "report.html"),
    }


@pytest.mark.parametrize(("failed", "is_told"), [({}, True), ({"goes_on": False}, False)])
def test_a_run_that_cannot_go_on_is_not_said_to_go_on(failed, is_told, paths):
    write_json(paths.status, {"phase": "failed", "reason": "because", **failed})
    with pytest.raises(FederationError, match="because") as error:
        _tell_end(EXIT_RUN_FAILED, paths, Console())
    assert ("goes on" in str(error.value)) == is_told


# --- runs


def _end(folder, status="completed"):
    folder.append_event({"event": "end", "status": status, "released_round": 1, "seconds": 1.0, "reason": None})


def test_runs_tells_what_became_of_each(call, paths):
    config = read_server_config(paths.config)
    begin_plan(paths, num_runs=1, anew=False)
    folder, _ = next_run(paths, config)
    folder.append_event({"event": "start", "run": "t", "started_at": "then", "hospitals": {"a": {}, "b": {}}})
    folder.append_event({"event": "validation", "round": 1, "macro_auroc": 0.625})
    folder.append_event({"event": "round", "round": 1})
    with folder.history_file.open("a", encoding="utf-8") as history:
        history.write('{"event": "end", "sta')  # a crash in the middle of a line
    assert summary_of(folder.path).status == "unfinished"
    shown = call("runs", "-f", paths.folder)
    assert "unfinished" in shown
    assert folder.path.name in shown, "whole, to be copied"
    with folder.history_file.open("a", encoding="utf-8") as history:
        history.write("\n")
    _end(folder)
    (folder.path / "metrics.json").write_text('{"macro_auroc": 0.75}', encoding="utf-8")
    [run] = json.loads(call("runs", "--json", "-f", paths.folder))["runs"]
    assert (run["status"], run["hospitals"], run["rounds_done"]) == ("completed", ["a", "b"], 1)
    assert (run["validation_macro_auroc"], run["test_macro_auroc"]) == (0.625, 0.75)
    shown = call("report", "-f", paths.folder)
    assert str(folder.path / "report.html") in shown
    assert (folder.path / "report.html").exists()
    assert folder.path.name in call("report", "nope", "-f", paths.folder, code=2)


COMMANDS = [
    "init",
    "enroll",
    "revoke",
    "hospitals",
    "start",
    "status",
    "stop",
    "runs",
    "report",
    "rotate-certificate",
    "federation",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_that_says_more_than_its_name(call, command):
    shown = call(command, "--help")
    assert "--folder" in shown or command == "init"
    assert len(shown.split()) > 40
    assert command in call("--help")


def test_the_command_line_is_there_before_pytorch_and_flower_are():
    check = "import server.cli, sys; print(sorted({'torch', 'flwr', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "[]\n"
