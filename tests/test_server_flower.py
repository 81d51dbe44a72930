"""The SuperLink as we start it: what it does for the centre, and what nobody else gets from it."""

import contextlib
import os
import socket
import ssl
import subprocess
import sys

import grpc
import httpx
import pytest
from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse, RegisterNodeRequest
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.run_pb2 import GetRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from aecnn.enrolment import split_address
from centre_in_folder import eventually, free_port, make_centre, new_key, private_file, public_pem
from server.centre import commands_of, link_of
from server.centre_setup import rotate_certificate
from server.flower import RETRY_FOR_S, Control, LinkError, LocalLink, flower_environment, names_of_nodes, server_task
from server.settings import read_server_config

pytestmark = [
    pytest.mark.flower,
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:GitWildMatchPattern:DeprecationWarning"
    ),  # Flower's own, when it builds a bundle
]


@contextlib.contextmanager
def _process(arguments, environment, log):
    with log.open("ab") as output:
        process = subprocess.Popen(arguments, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _superlink(paths, config):
    """A SuperLink exactly as `start` runs it."""
    [command, _] = commands_of(paths, config, paths.config)
    log = paths.folder / "superlink.log"
    with _process(command.arguments, command.environment, log) as process:
        with _control(link_of(paths, config)) as control:
            eventually(lambda: control.is_up() or process.poll() is not None, what="the SuperLink")
            assert process.poll() is None, log.read_text()
        yield process


@contextlib.contextmanager
def _control(link):
    control = Control(link)
    try:
        yield control
    finally:
        control.close()


@pytest.fixture(scope="module")
def centre(tmp_path_factory):
    """A running SuperLink: its folder, configuration and link."""
    paths = make_centre(tmp_path_factory.mktemp("centre") / "fed")
    config = read_server_config(paths.config)
    with _superlink(paths, config):
        yield paths, config, link_of(paths, config)


@pytest.fixture
def control(centre):
    with _control(centre[2]) as control:
        yield control


@contextlib.contextmanager
def _supernode(centre, key_file, folder, *, authority=None, tls=True):
    """A SuperNode as a hospital runs it, without its worker."""
    paths, config, _ = centre
    secret = folder / "secret"
    secret.write_text("s" * 64)
    trust = ["--root-certificates", str(authority or paths.ca_certificate)] if tls else ["--insecure"]
    program = os.path.join(os.path.dirname(sys.executable), "flower-supernode")
    command = [program, "--superlink", config.address, *trust, "--auth-supernode-private-key", str(key_file)]
    command += ["--isolation", "process", "--superexec-auth-secret-file", str(secret)]
    command += ["--host", "127.0.0.1", "--port", str(free_port())]
    with _process(command, flower_environment(folder / "flwr"), folder / "node.log") as process:
        yield process


# --- what it does for the centre


def test_a_hospital_is_registered_known_by_its_name_and_cut_off_at_once(centre, control, tmp_path):
    key = new_key()
    node_id = control.register("st-anna", public_pem(key))
    assert [(node.node_id, node.name, node.is_online) for node in control.nodes()] == [(node_id, "st-anna", False)]
    with _supernode(centre, private_file(key, tmp_path / "key"), tmp_path) as process:
        eventually(lambda: [node.is_online for node in control.nodes()] == [True], what="the SuperNode")
        run_id = control.start_run()
        with server_task(centre[2], run_id, timeout_s=30) as (grid, context):
            assert names_of_nodes(grid) == {node_id: "st-anna"}
            assert grid._retry_invoker.max_time == RETRY_FOR_S, "a call of the grid ends, whatever the SuperLink does"
            assert grid._runtime_client._retry_invoker is grid._retry_invoker
            assert context.run_id == run_id
            control.unregister(node_id)
            assert names_of_nodes(grid) == {}
        assert control.nodes() == []
        process.wait(timeout=90)  # the revoked hospital's SuperNode was sent away
    with _supernode(centre, tmp_path / "key", tmp_path) as process:
        assert process.wait(timeout=60) != 0, "and does not come in again"
    with pytest.raises(LinkError, match="in use"):
        control.register("st-anna", public_pem(key))


def test_an_unknown_key_a_foreign_authority_and_plaintext_are_refused(centre, control, tmp_path):
    known, foreign = new_key(), make_centre(tmp_path / "other").ca_certificate
    node_id = control.register("b", public_pem(known))
    try:
        for name, key, options in (
            ("unknown", new_key(), {}),
            ("foreign", known, {"authority": foreign}),
            ("plain", known, {"tls": False}),
        ):
            folder = tmp_path / name
            folder.mkdir()
            with _supernode(centre, private_file(key, folder / "key"), folder, **options) as process:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=8)
                assert [node.is_online for node in control.nodes()] == [False], (folder / "node.log").read_text()
    finally:
        control.unregister(node_id)


def test_runs_that_an_earlier_process_left_are_stopped(control):
    control.stop_runs()
    control.start_run()
    control.start_run()
    assert control.stop_runs() == 2
    assert control.stop_runs() == 0


def test_a_task_of_a_run_that_is_gone_is_waited_for_no_longer_than_said(centre):
    with pytest.raises(LinkError, match="did not hand out"), server_task(centre[2], 12345, timeout_s=1.0):
        pass


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(centre, monkeypatch):
    dead = f"http://127.0.0.1:{free_port()}"
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, dead)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", "elsewhere.example")
    with pytest.raises(httpx.HTTPError), httpx.Client(verify=False) as client:  # noqa: S501
        client.get(f"https://{centre[2].address}")  # the proxy is in force for others
    with _control(centre[2]) as control:
        run_id = control.start_run()
        with server_task(centre[2], run_id, timeout_s=30) as (grid, _):
            assert names_of_nodes(grid) == {}
    for spared in ("NO_PROXY", "no_proxy"):
        assert flower_environment(centre[0].flower_home)[spared] == "elsewhere.example,127.0.0.1,localhost"


def test_who_is_registered_survives_the_superlink_and_a_new_certificate(tmp_path):
    paths = make_centre(tmp_path / "fed")
    config = read_server_config(paths.config)
    link = link_of(paths, config)
    with _superlink(paths, config) as process, _control(link) as control:
        node_id = control.register("a", public_pem(new_key()))
        run_id = control.start_run()
        process.kill()
        process.wait()
        with pytest.raises(LinkError, match="does not answer"):
            control.nodes()
    rotate_certificate(paths, config, host_names=[])
    with _superlink(paths, config), _control(link) as control:
        assert [node.node_id for node in control.nodes()] == [node_id]
        assert control.stop_runs() == 1, f"run {run_id}"


# --- what nobody else gets from it


def _listening(port):
    """The addresses on which a port of this machine is listened on, as the kernel knows them (IPv4 and IPv6)."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError), open(table, encoding="ascii") as lines:
            for line in list(lines)[1:]:
                local, state = line.split()[1], line.split()[3]
                address, _, number = local.partition(":")
                if state == "0A" and int(number, 16) == port:
                    found.add(address)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_control_and_runtime_are_on_loopback_alone(centre):
    assert _listening(centre[1].local_port) == {"0100007F"}


def _control_call(address, message, *, verify):
    url = f"https://{address}/v1/control/list-nodes"
    headers = {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}
    with httpx.Client(verify=verify, trust_env=False, timeout=10) as client:
        return client.post(url, content=message.SerializeToString(), headers=headers)


def test_a_control_call_on_the_fleet_port_gets_nothing(centre):
    _, config, link = centre
    trusted = ssl.create_default_context(cadata=link.ca_certificate.decode())
    answer = _control_call(link.address, ListNodesRequest(), verify=trusted)
    assert answer.status_code == 200, "the same call where it belongs"
    ListNodesResponse.FromString(answer.content)
    for message in (ListNodesRequest(), RegisterNodeRequest(public_key=public_pem(new_key()).encode())):
        with pytest.raises(httpx.HTTPError):
            _control_call(config.address, message, verify=trusted)


def test_no_control_or_runtime_method_is_served_by_grpc_on_the_fleet_port(centre):
    _, config, link = centre
    with grpc.secure_channel(config.address, grpc.ssl_channel_credentials(link.ca_certificate)) as channel:
        for method in ("Control/ListNodes", "Control/StartRun", "Control/RegisterNode", "Runtime/AcquireTask"):
            call = channel.unary_unary(f"/flwr.proto.{method}")
            with pytest.raises(grpc.RpcError) as error:
                call(b"", timeout=10)
            assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED, method


def test_a_fleet_call_without_a_registered_key_is_refused(centre):
    _, config, link = centre
    channel = grpc.secure_channel(config.address, grpc.ssl_channel_credentials(link.ca_certificate))
    with channel, pytest.raises(grpc.RpcError) as error:
        FleetStub(channel).GetRun(GetRunRequest(), timeout=10)
    assert error.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def test_plaintext_on_the_fleet_port_gets_nothing(centre):
    host, port = split_address(centre[1].address)
    with socket.create_connection((host, port), timeout=10) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0")  # how gRPC begins
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := plain.recv(4096):
                received += chunk
    assert b"\0\0" not in received[:3], "no HTTP/2 settings frame came back"
    with grpc.insecure_channel(centre[1].address) as channel, pytest.raises(grpc.RpcError):
        FleetStub(channel).GetRun(GetRunRequest(), timeout=10)


def test_a_task_is_not_given_without_the_secret(centre, control):
    link = centre[2]
    run_id = control.start_run()
    try:
        stranger = LocalLink(link.port, link.ca_certificate, b"0" * 64)
        with pytest.raises(LinkError, match="refuses"), server_task(stranger, run_id, timeout_s=5):
            pass
        trusted = ssl.create_default_context(cadata=link.ca_certificate.decode())
        with httpx.Client(verify=trusted, trust_env=False) as client:
            answer = client.post(
                f"https://{link.address}/v1/runtime/acquire-task",
                content=AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]).SerializeToString(),
                headers={"content-type": PROTOBUF_MEDIA_TYPE},
            )
        assert answer.status_code in (401, 403), "no secret at all"
        with server_task(link, run_id, timeout_s=30):
            pass  # it was there to be had
    finally:
        control.stop_runs()


def test_telemetry_and_installing_are_off_for_every_process(centre):
    for command in commands_of(centre[0], centre[1], centre[0].config):
        for name, value in (
            ("FLWR_TELEMETRY_ENABLED", "0"),
            ("FLWR_DISABLE_UPDATE_CHECK", "1"),
            ("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1"),
        ):
            assert command.environment[name] == value
