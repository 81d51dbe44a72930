"""``aecnn-client check``: what it finds on the way to the centre, and that what it shows is what would leave."""

import contextlib
import io
import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from scipy.optimize import brentq
from scipy.stats import norm

from aecnn.config import ModelConfig, load_config
from aecnn.contract import exchange_schema
from aecnn.data.check.outcome import Outcome
from aecnn.data.split import in_validation
from aecnn.enrolment import FederationFile
from aecnn.evaluation.noised import expected_auroc_error
from aecnn.findings import FINDINGS
from aecnn.model.joint import build_architecture
from centre_in_folder import eventually, free_port
from client.check import check_budget, check_centre, check_connection, check_files, check_validation
from client.check_command import CheckResult, check_progress, run_checks, show_checks
from client.connection import node_environment, proxy_for, try_to_connect
from client.ledger_store import create_ledger
from client.node_log import node_state
from client.rehearsal import Speed, rehearsal_plan, rehearsal_site, rehearse
from client.setup import public_key_of, rotate_key
from client.site import SiteConfig, read_hospital
from client.state import SiteState
from hospital_in_folder import aecnn_client, client_started, federation_file, make_hospital
from hospital_in_process import PLAN
from server.certificates import issue_server_certificate, make_authority
from server.flower import Control, LocalLink, flower_environment, superlink_command

HOST = "centre.invalid"  # resolves nowhere: who reaches it went through the proxy


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "grpc_proxy", "no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def threads_kept():
    """PyTorch's number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _by_name(outcomes):
    return {outcome.check: outcome for outcome in outcomes}


@contextlib.contextmanager
def _listening(answer):
    """A server on loopback that gives each connection to `answer` in a thread; gives its port."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.1)
    is_over, threads = threading.Event(), []

    def accept():
        while not is_over.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = server.accept()
                threads.append(threading.Thread(target=answer, args=(connection,)))
                threads[-1].start()

    threads.append(threading.Thread(target=accept))
    threads[0].start()
    try:
        yield server.getsockname()[1]
    finally:
        is_over.set()
        for thread in threads:
            thread.join(timeout=10)
        server.close()


@contextlib.contextmanager
def _tls_server(tmp_path, issued):
    """A server that shakes hands with this certificate and says goodbye."""
    (tmp_path / "server.pem").write_bytes(issued.certificate)
    (tmp_path / "server.key").write_bytes(issued.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    context.set_alpn_protocols(["h2"])

    def answer(connection):
        with connection, contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(1)

    with _listening(answer) as port:
        yield port


@contextlib.contextmanager
def _proxy(target_port, asked):
    """An HTTP proxy that notes what it is asked for and connects everyone to `target_port`."""

    def pump(source, target):
        with contextlib.suppress(OSError):
            while part := source.recv(65_536):
                target.sendall(part)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def answer(connection):
        with connection, contextlib.suppress(OSError):
            header = b""
            while b"\r\n\r\n" not in header:
                header += connection.recv(1)
            asked.append(header.decode().split("\r\n")[0])
            with socket.create_connection(("127.0.0.1", target_port)) as target:
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=pump, args=(target, connection))
                back.start()
                pump(connection, target)
                back.join()

    with _listening(answer) as port:
        yield port


def _hospital(tmp_path, data, *, address="127.0.0.1:9", authority=None, **replaced):
    federation = federation_file(tmp_path / "federation.yaml", address=address, authority=authority)
    paths = make_hospital(tmp_path / "site", data, federation=federation, **replaced)
    return paths, load_config(paths.federation, FederationFile)


def _without_enrolment(monkeypatch, state="connected"):
    """The TLS tests need no SuperNode: a process of Flower's takes ten seconds to start."""
    monkeypatch.setattr("client.check._enrolment_state", lambda paths, federation: state)


def test_the_handshake_trusts_the_federations_authority_for_the_name_and_tells_when_the_certificate_ends(
    phantom_64px, tmp_path, monkeypatch
):
    _without_enrolment(monkeypatch)
    authority = make_authority("test")
    with _tls_server(tmp_path, issue_server_certificate(authority, ["127.0.0.1"])) as port:
        paths, federation = _hospital(tmp_path, phantom_64px, address=f"127.0.0.1:{port}", authority=authority)
        found = _by_name(check_connection(paths, federation))
    assert [found[name].status for name in ("address", "tls", "enrolment", "clock")] == ["pass"] * 4
    told = datetime.strptime(found["tls"].summary.split()[-1], "%Y-%m-%d").replace(tzinfo=UTC)
    assert timedelta(days=395) < told - datetime.now(UTC) < timedelta(days=398)


@pytest.mark.parametrize("case", ["another authority", "another name", "no TLS"])
def test_who_cannot_prove_to_be_the_centre_is_told_and_asked_nothing_more(case, phantom_64px, tmp_path, monkeypatch):
    monkeypatch.setattr("client.check._enrolment_state", lambda *_: pytest.fail("asked for the enrolment"))
    authority = make_authority("test")
    signed_by = make_authority("test") if case == "another authority" else authority
    issued = issue_server_certificate(signed_by, ["another.example" if case == "another name" else HOST])
    server = _listening(_answer_in_plain) if case == "no TLS" else _tls_server(tmp_path, issued)
    with server as port, _proxy(port, []) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy}")
        paths, federation = _hospital(tmp_path, phantom_64px, address=f"{HOST}:9092", authority=authority)
        found = _by_name(check_connection(paths, federation))
    assert found["address"].status == "pass"
    assert found["tls"].status == "fail"
    assert ("speaks no TLS" if case == "no TLS" else "certificate is refused") in found["tls"].summary
    assert "enrolment" not in found


def _answer_in_plain(connection):
    with connection, contextlib.suppress(OSError):
        connection.recv(1)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_a_centre_that_does_not_answer_is_told(phantom_64px, tmp_path):
    paths, federation = _hospital(tmp_path, phantom_64px, address=f"127.0.0.1:{free_port()}")
    (outcome,) = check_connection(paths, federation)
    assert (outcome.check, outcome.status) == ("address", "fail")
    assert "refused" in outcome.summary


def test_the_sites_proxy_leads_to_the_centre_and_the_name_is_still_verified(phantom_64px, tmp_path, monkeypatch):
    _without_enrolment(monkeypatch)
    authority, asked = make_authority("test"), []
    with (
        _tls_server(tmp_path, issue_server_certificate(authority, [HOST])) as port,
        _proxy(port, asked) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy}")
        paths, federation = _hospital(tmp_path, phantom_64px, address=f"{HOST}:9092", authority=authority)
        found = _by_name(check_connection(paths, federation))
    assert asked == [f"CONNECT {HOST}:9092 HTTP/1.1"]
    assert found["tls"].status == "pass"


def test_grpc_finds_the_proxy_as_it_spells_it_and_loopback_goes_direct(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    environment = node_environment(tmp_path)
    assert environment["https_proxy"] == "http://proxy.example:3128"
    for name in ("no_proxy", "NO_PROXY"):
        assert {"127.0.0.1", "localhost", "intranet.example"} <= set(environment[name].split(","))
    assert proxy_for("centre.example", environment) == "http://proxy.example:3128"
    assert proxy_for("127.0.0.1", environment) is None
    assert proxy_for("centre.intranet.example", environment) is None
    monkeypatch.setenv("HTTPS_PROXY", "")
    assert proxy_for("centre.example", node_environment(tmp_path)) is None


@pytest.mark.slow
@pytest.mark.flower
def test_a_real_supernode_goes_through_the_proxy_and_its_key_is_known_once_it_is_enrolled(
    phantom_64px, tmp_path, monkeypatch
):
    authority, asked = make_authority("test"), []
    issued = issue_server_certificate(authority, [HOST])
    files = {"certificate": issued.certificate, "key": issued.key, "ca_certificate": authority.certificate}
    files["secret_file"] = b"0" * 64
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    port, local_port = free_port(), free_port()
    command = superlink_command(
        listen=f"127.0.0.1:{port}",
        port=local_port,
        database=tmp_path / "db",
        **{name: tmp_path / name for name in files},
    )
    link = subprocess.Popen(command, env=flower_environment(tmp_path / "flower"), stdout=subprocess.DEVNULL)
    try:
        control = Control(LocalLink(local_port, authority.certificate, b""))
        eventually(control.is_up, what="the SuperLink")
        with _proxy(port, asked) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy}")
            changes = {"authority": authority, "local_port": str(free_port())}
            paths, federation = _hospital(tmp_path, phantom_64px, address=f"{HOST}:9092", **changes)
            assert try_to_connect(paths, federation) == "refused"
            control.register("st-mary", public_key_of(paths.key))
            assert try_to_connect(paths, federation) == "connected"
            found = _by_name(check_connection(paths, federation))
            request = rotate_key(paths)
            assert paths.old_key.exists()
            control.register("st-mary-again", request.public_key)
            paths.ca_certificate.write_bytes(make_authority("an older one").certificate)
            with client_started(paths):
                eventually(lambda: not paths.old_key.exists(), what="the new key's connection")
                assert "is of another centre" in (paths.folder / "start.log").read_text()
                eventually(lambda: check_centre(paths, federation).status == "pass", what="the new centre's name")
        assert found["enrolment"].status == found["clock"].status == "pass"
        assert set(asked) == {f"CONNECT {HOST}:9092 HTTP/1.1"}
        control.close()
    finally:
        link.terminate()
        link.wait(timeout=60)


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("INFO :      SuperNode ID: 8710715420259004714", "connected"),
        ("WARNING :   Connection attempt failed, retrying in 0.86 seconds", "unreachable"),
        ("INFO :      Connection successful after 12.00 seconds and 4 tries.", "connected"),
        ("[code: 2004] Failed to activate SuperNode.", "refused"),
        ("INFO :      SuperNode terminated gracefully.", "ended"),
        ("INFO :      Starting Flower SuperNode\nINFO :      SuperNode terminated gracefully.", "refused"),
        ("aecnn-client start 2026-11-24T22:00:00+00:00", "starting"),
    ],
)
def test_the_last_sign_of_the_supernodes_log_counts(line, state):
    assert node_state("") == "starting"
    assert node_state(f"INFO: SuperNode ID: 1\n{line}\nINFO :      \n") == state


ABSENT = {  # of the contract: what this site file keeps in, and what only a run with differential privacy has
    "counts": {"positives"},
    "report": {"noise-multiplier", "sample-rate", "delta", "epsilon"},
    "histograms": {"floored-counts", "noised-counts"},
}


@pytest.mark.slow
def test_a_site_that_requires_privacy_rehearses_with_it(phantom_64px, tmp_path, threads_kept):
    paths, _ = _hospital(tmp_path, phantom_64px, backbones="[resnet18]", min_patients="2", requires_privacy="true")
    text = paths.site.read_text()
    text = text.replace("patients: null", "patients: 30")
    paths.site.write_text(text.replace("max_evaluation_epsilon: null", "max_evaluation_epsilon: 2"))
    found = run_checks(paths.folder, labels_only=True)
    checks = _by_name(found.outcomes)
    assert checks["would-leave"].status == "pass"
    assert checks["budget"].status == "pass"
    assert "ε 0.00 of 8 spent" in checks["budget"].summary  # the rehearsal spends nothing
    assert "at ε 2 for all of a run" in checks["noised-figures"].summary
    report = found.would_leave["messages"][1]["records"]["report"]["scalars"]
    assert set(report) == {"num-images", "num-steps", "noise-multiplier", "sample-rate", "delta", "epsilon"}
    arrays = found.would_leave["messages"][1]["records"]["histograms"]["arrays"]
    assert [array["name"] for array in arrays] == ["noised-counts"]


def test_what_noise_would_do_to_its_figures_is_told_before_a_site_agrees_to_it(phantom_64px, tmp_path):
    paths, _ = _hospital(tmp_path, phantom_64px)
    config = load_config(paths.site, SiteConfig)
    create_ledger(tmp_path / "ledger")
    privacy = config.policy.privacy.model_copy(
        update={"ledger_folder": tmp_path / "ledger", "max_evaluation_epsilon": 4.0, "delta": 1e-5}
    )
    config = config.model_copy(update={"policy": config.policy.model_copy(update={"privacy": privacy})})
    few, many = (
        _by_name(check_budget(config, paths, num_patients=patients))["noised-figures"].summary
        for patients in (100, 40_000)
    )
    # One Gaussian mechanism at epsilon 4 and delta 1e-5: the noise by the closed form (Balle & Wang 2018).
    noise = brentq(lambda sigma: _delta_of_gaussian(4.0, sigma) - 1e-5, 0.1, 10.0)
    least = 4.0 * noise * np.sqrt(14 * 32)  # four standard deviations of a class's total over 32 bins
    assert f"5% of 10 validation patients: judged once, it is not told: {least:.0f} images of each class" in few
    error = expected_auroc_error(0.05 * 4000, 0.95 * 4000, noise, 1)
    assert f"5% of 4,000 validation patients: judged once, it is off by ±{error:.3f}" in many
    assert "judged 11 times, as in 50 rounds, it is not told" in many


def _delta_of_gaussian(epsilon, sigma):
    return norm.cdf(0.5 / sigma - epsilon * sigma) - np.exp(epsilon) * norm.cdf(-0.5 / sigma - epsilon * sigma)


@pytest.mark.slow
def test_what_is_shown_is_all_that_the_contract_lists_and_the_real_client_never_knows(
    phantom_64px, tmp_path, threads_kept
):
    # Six patients validate: with a higher floor neither validation sums nor histograms would leave.
    paths, _ = _hospital(tmp_path, phantom_64px, backbones="[resnet18]", positives="false", min_patients="2")
    found = run_checks(paths.folder, labels_only=True)
    checks = _by_name(found.outcomes)
    assert checks["would-leave"].status == checks["device"].status == checks["patients"].status == "pass"
    assert "images/s (resnet18" in checks["device"].summary
    assert found.would_leave == json.loads(paths.would_leave.read_text())
    assert stat.S_IMODE(paths.would_leave.stat().st_mode) == 0o600
    schema = exchange_schema()
    assert [message["asked"] for message in found.would_leave["messages"]] == ["query", "train", "query.placements"]
    for message in found.would_leave["messages"]:
        wanted = schema[message["asked"]]
        assert set(message["records"]) == set(wanted)
        for name, record in message["records"].items():
            keys = set(record.get("scalars", {})) | {array["name"] for array in record.get("arrays", ())}
            assert keys == set(wanted[name]) - ABSENT.get(name, set())
    (weights,) = found.would_leave["messages"][1]["records"]["weights"]["arrays"]
    architecture = build_architecture(ModelConfig(backbone="resnet18"), input_size_px=128)
    shapes = {name: list(tensor.shape) for name, tensor in architecture.state_dict().items()}
    assert {tensor["name"]: tensor["shape"] for tensor in weights["tensors"]} == shapes
    assert not paths.audit_log.exists()
    assert {path.name for path in paths.state.iterdir()} == {"secret", "state.sqlite", "would-leave.json"}


def test_the_rehearsal_takes_as_many_steps_as_the_floor_of_patients_asks_for(phantom_64px, tmp_path):
    paths, _ = _hospital(tmp_path, phantom_64px, backbones="[resnet18]", min_patients="10")
    with rehearsal_site(paths) as site:
        _, train = rehearse(site)["messages"]
    assert set(train["records"]) == {"origin", "audit", "report", "weights"}  # six patients validate
    assert 1 < train["records"]["report"]["scalars"]["num-steps"] <= 4


def test_a_hospital_below_its_own_floor_sees_that_nothing_would_leave(phantom_64px, tmp_path, monkeypatch):
    paths, _ = _hospital(tmp_path, phantom_64px, backbones="[resnet18]", min_patients="1000")
    speed = Speed(1.0, "a device", rehearsal_plan(load_config(paths.site, SiteConfig), steps=1))
    monkeypatch.setattr("client.rehearsal.measure_speed", lambda site: speed)  # ten steps take their time
    found = run_checks(paths.folder, labels_only=True)
    checks = _by_name(found.outcomes)
    assert checks["patients"].status == checks["would-leave"].status == found.status == "fail"
    assert [message["records"] for message in found.would_leave["messages"]] == [{}, {}]
    assert "min_patients is 1000" in checks["would-leave"].summary


@pytest.mark.parametrize(
    ("floor", "mode", "status"), [(2, "fine", "pass"), (2, "floored", "pass"), (10, "fine", "warn")]
)
def test_which_findings_figures_would_leave_is_told_before_the_site_joins(phantom_64px, tmp_path, floor, mode, status):
    paths, _ = _hospital(
        tmp_path, phantom_64px, min_patients=str(floor), histogram_mode=mode, validation_fraction="0.3"
    )
    config = load_config(paths.site, SiteConfig).model_copy(update={"validation_key": "a key"})
    (outcome,) = check_validation(config, paths)
    SiteState(paths.database).set_validation_fraction(0.1)
    assert "if 10% validate" in check_validation(config, paths)[0].summary  # what the centre asked for first holds
    manifest = read_hospital(paths.site).manifest
    table = pd.DataFrame(manifest.targets, columns=list(FINDINGS)).assign(patient=manifest.table["patient"].tolist())
    own = table[in_validation(table["patient"].tolist(), fraction=0.3, key=config.validation_key)]
    lacking = []
    for finding in FINDINGS:
        with_it, without = (own[own[finding] == value]["patient"].nunique() for value in (1, 0))
        if min(with_it, without) < floor * (2 if mode == "floored" else 1):
            lacking.append(finding)
    assert outcome.status == status
    assert (
        f"if 30% validate ({own['patient'].nunique()} patients), those of {14 - len(lacking)} of 14" in outcome.summary
    )
    assert lacking
    assert outcome.summary.endswith(f"; too few for {', '.join(lacking)}") == (status == "pass")


def test_what_the_site_keeps_in_needs_no_floor(phantom_64px, tmp_path):
    paths, _ = _hospital(tmp_path, phantom_64px, requires_privacy="true")
    assert check_validation(load_config(paths.site, SiteConfig), paths) == []


@pytest.mark.slow
def test_faulty_data_fail_the_check_and_are_not_trained_on(phantom_64px, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(phantom_64px, root)
    paths, _ = _hospital(tmp_path, root)
    (root / "images" / sorted(os.listdir(root / "images"))[0]).unlink()
    stdout, _ = aecnn_client("check", "-f", paths.folder, "--json", "--report", tmp_path / "data.html", code=1)
    document = json.loads(stdout)
    status = {check["check"]: check["status"] for check in document["checks"]}
    assert document["status"] == status["data"] == status["address"] == "fail"
    assert status["files"] == status["code"] == "pass"
    assert "would-leave" not in status
    assert document["would_leave"] is None
    assert (tmp_path / "data.html").is_file()


def test_a_federation_file_of_another_centre_is_noticed_until_that_centre_has_connected(phantom_64px, tmp_path):
    paths, federation = _hospital(tmp_path, phantom_64px)
    assert check_centre(paths, federation).status == "pass"
    moved = federation.model_copy(update={"address": "elsewhere.example:9092"})
    assert check_centre(paths, moved).status == "pass"  # the same authority, at another address
    federation_file(paths.federation, name="theirs", authority=make_authority("other"))
    outcome = check_centre(paths, load_config(paths.federation, FederationFile))
    assert outcome.status == "warn"
    assert "is of another centre (federation theirs" in outcome.summary


def test_the_table_names_what_warns_and_says_that_the_figures_are_a_rehearsals(tmp_path):
    warned = Outcome(
        check="data",
        title="Data",
        status="warn",
        summary="1 image of 1 patient",
        details=("findings to evaluate: warn",),
    )
    console = Console(file=io.StringIO(), width=1000)
    show_checks(CheckResult((warned,), {"plan": PLAN.model_dump(mode="json"), "messages": []}), console)
    told = console.file.getvalue()
    assert "1 image of 1 patient" in told
    assert "findings to evaluate: warn" in told
    assert "not a real round's: they come from a tiny rehearsal" in told
    assert "resnet18 at 64 px, a few of the patients, 2 steps of 4 images" in told


def test_the_bar_has_no_count_before_the_number_of_images_is_known(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with check_progress() as (on_progress, on_check):
        on_check("opening images")
        on_progress(3, 7)
        on_check("connecting to the centre")
    assert "/?" not in capsys.readouterr().err


def test_every_fault_of_the_folder_is_told_at_once(phantom_64px, tmp_path):
    paths, _ = _hospital(tmp_path, phantom_64px, min_steps="0", max_rounds="none")
    paths.key.chmod(0o644)
    paths.federation.unlink()
    ((outcome,), config, federation) = check_files(paths)
    assert (config, federation) == (None, None)
    assert outcome.status == "fail"
    for told in ("min_steps", "max_rounds", "chmod 600", "federation.yaml"):
        assert told in outcome.summary


def test_a_site_file_without_a_policy_fails_since_nothing_would_leave(phantom_64px, tmp_path):
    paths, _ = _hospital(tmp_path, phantom_64px)
    text = paths.site.read_text()
    paths.site.write_text(text[: text.index("\npolicy:")])
    ((outcome,), config, _) = check_files(paths)
    assert config is not None
    assert "nothing leaves" in outcome.summary


def test_other_code_than_the_federations_fails(phantom_64px, tmp_path, monkeypatch):
    federation = federation_file(tmp_path / "federation.yaml", code_fingerprints=("0" * 64,))
    paths = make_hospital(tmp_path / "site", phantom_64px, federation=federation)
    monkeypatch.setattr("client.check_command.check_training", lambda paths: ([], None))
    found = _by_name(run_checks(paths.folder, labels_only=True).outcomes)
    assert found["code"].status == "fail"
    assert "000000000000…" in found["code"].summary
