"""Who may not join, what may not run, and what may leave: tried against a centre and hospitals that are up."""

import contextlib
import json
import socket
import subprocess
import time

import grpc
import pytest
import yaml
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.cli.build import build_fab_from_files

from aecnn.enrolment import FederationFile
from client.flower import flower_environment, supernode_command
from client.paths import SitePaths
from deployed_federation import command, deploy, free_port
from federation_in_process import small_config
from server.certificates import make_authority
from server.flower import Control, LocalLink, server_task
from server.settings import CentrePaths

pytestmark = [pytest.mark.flower, pytest.mark.slow]

OUTCOMES = ("SuperNode ID", "305", "retrying")  # of a SuperNode's try to connect: it is in, sent away, or not heard

HOSTILE_CLIENT = """
from pathlib import Path
from flwr.app import Message
from flwr.clientapp import ClientApp

Path({marker!r}).write_text("imported")
app = ClientApp()


@app.train()
def train(message, context):
    Path({marker!r}).write_text("run")
    return Message(message.content, reply_to=message)
"""


@pytest.fixture(scope="module")
def waiting(phantom_64px, tmp_path_factory):
    """A centre that waits for three hospitals, of which two are there."""
    folder = tmp_path_factory.mktemp("waiting")
    config = small_config(phantom_64px, federation={"min_hospitals": 3, "join_timeout_s": 3600})
    deployed = deploy(folder, config)
    try:
        deployed.start("centre", "hospital-1", "hospital-2")
        deployed.wait_for(lambda: _online(deployed) == ["hospital-1", "hospital-2"], "two hospitals online")
        yield deployed
    finally:
        deployed.stop()


def _online(deployed) -> list[str]:
    listed = json.loads(command("flower-server", "hospitals", "--folder", deployed.centre, "--json").stdout)
    return [hospital["name"] for hospital in listed["hospitals"] if hospital["is_online"]]


def _link(deployed) -> LocalLink:
    paths = CentrePaths(deployed.centre)
    return LocalLink(deployed.local_port, paths.ca_certificate.read_bytes(), paths.secret.read_bytes())


def _supernode_output(deployed, folder, *, ca_certificate=None, plaintext=False) -> str:
    """Runs a hospital's SuperNode until it was let in or sent away, and a moment longer; gives what it said."""
    paths = SitePaths(folder)
    arguments = supernode_command(
        address=f"127.0.0.1:{deployed.fleet_port}",
        ca_certificate=ca_certificate or paths.ca_certificate,
        key=paths.key,
        port=free_port(),
        secret_file=paths.secret,
    )
    if plaintext:
        at = arguments.index("--root-certificates")
        key_at = arguments.index("--auth-supernode-private-key")
        dropped = {at, at + 1, key_at, key_at + 1}
        arguments = [part for index, part in enumerate(arguments) if index not in dropped] + ["--insecure"]
    log = folder / "attempt.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments, env=flower_environment(folder / "home"), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deployed.wait_for(
            lambda: process.poll() is not None or any(told in log.read_text() for told in OUTCOMES), "an outcome", 90
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2)
    finally:
        process.kill()
        process.wait()
    return log.read_text()


def test_a_hospital_that_was_not_enrolled_cannot_join(waiting, phantom_64px, tmp_path):
    stranger = tmp_path / "stranger"
    federation = waiting.centre / "federation.yaml"
    command("aecnn-client", "init", stranger, "--federation", federation, "--name", "stranger", "--data", phantom_64px)
    said = _supernode_output(waiting, stranger)
    assert "305" in said
    assert "SuperNode ID" not in said
    assert _online(waiting) == ["hospital-1", "hospital-2"]


def test_a_hospital_does_not_talk_to_a_centre_with_another_authority(waiting, tmp_path):
    foreign = tmp_path / "foreign.pem"
    foreign.write_bytes(make_authority("somewhere else").certificate)
    said = _supernode_output(waiting, waiting.hospitals["hospital-3"], ca_certificate=foreign)
    assert "305" in said or "retrying" in said  # it tried
    assert "SuperNode ID" not in said


def test_plaintext_is_refused(waiting):
    said = _supernode_output(waiting, waiting.hospitals["hospital-3"], plaintext=True)
    assert "305" in said or "retrying" in said  # it tried
    assert "SuperNode ID" not in said
    channel = grpc.insecure_channel(f"127.0.0.1:{waiting.fleet_port}")
    with pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(timeout=5)
    channel.close()


def test_from_outside_nothing_but_the_fleet_service_answers(waiting):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; tells which of this machine's addresses faces outside
        outside = probe.getsockname()[0]
    if outside.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    for port in (waiting.local_port, 8100):
        with socket.socket() as attempt:
            attempt.settimeout(3)
            assert attempt.connect_ex((outside, port)) != 0, f"port {port} answers at {outside}"


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # of Flower's own
def test_a_bundle_with_code_runs_at_no_hospital(waiting, tmp_path, monkeypatch):
    """Even who owns the centre cannot make a hospital run code that it did not install."""
    marker = tmp_path / "hostile-code-ran"
    files = {
        "pyproject.toml": (
            b'[project]\nname = "aecnn-federated"\nversion = "6.6.6"\ndescription = ""\nlicense = "Apache-2.0"\n'
            b'[tool.flwr.app]\npublisher = "aecnn"\n[tool.flwr.app.components]\n'
            b'serverapp = "server.app:app"\nclientapp = "client.app:app"\n[tool.flwr.app.config]\n'
            b'site = "/etc/passwd"\n'
        ),
        "client/__init__.py": b"",
        "client/app.py": HOSTILE_CLIENT.format(marker=str(marker)).encode(),
    }
    monkeypatch.setattr("server.flower.build_fab_from_files", lambda _: build_fab_from_files(files))
    control = Control(_link(waiting))
    with server_task(_link(waiting), control.start_run(), timeout_s=30) as (grid, _context):
        nodes = {node.name: node.node_id for node in grid.get_nodes() if node.name in ("hospital-1", "hospital-2")}
        assert set(nodes) == {"hospital-1", "hospital-2"}
        content = RecordDict({"config": ConfigRecord({"round": 1})})
        pending = set(grid.push_messages([Message(content, node, "train") for node in nodes.values()]))
        replies = []
        deadline = time.monotonic() + 90
        while pending and time.monotonic() < deadline:
            for reply in grid.pull_messages(sorted(pending)):
                pending.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
            time.sleep(0.5)
    assert len(replies) == 2
    assert all(
        reply.has_error() and reply.error.code >= 100 for reply in replies
    )  # our code answered, not the bundle's
    assert not marker.exists()
    control.close()


def test_a_revoked_hospital_is_cut_off_at_once_and_no_one_else(waiting):
    command("flower-server", "revoke", "hospital-2", "--folder", waiting.centre)
    assert _online(waiting) == ["hospital-1"]
    said = _supernode_output(waiting, waiting.hospitals["hospital-2"])
    assert "SuperNode ID" not in said


def test_the_federation_file_holds_no_secret(waiting):
    text = (waiting.centre / "federation.yaml").read_text()
    assert "PRIVATE" not in text
    federation = FederationFile.model_validate(yaml.safe_load(text))
    assert set(federation.exchanged) == {"query", "train", "evaluate", "query.placements", "query.deliver"}
    for path in (waiting.centre / "tls" / "ca.key", waiting.centre / "state" / "secret"):
        assert path.stat().st_mode & 0o077 == 0
