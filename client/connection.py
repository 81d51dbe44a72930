"""The way to the centre: through the site's proxy if it has one, TLS with the federation's own authority, enrolment."""

import base64
import hashlib
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from aecnn.enrolment import FederationFile, split_address
from aecnn.processes import Command, ProcessGroup
from client.flower import LOOPBACK, flower_environment, supernode_command
from client.node_log import NodeState, node_state
from client.paths import SitePaths

CONNECT_TIMEOUT_S = 15.0
TRIAL_TIMEOUT_S = 45.0  # the SuperNode's own start takes five to twenty seconds
_LOCAL_HOSTS = ("localhost", LOOPBACK)
_MOST_HEADER_BYTES = 65_536


@dataclass(frozen=True)
class ServerCertificate:
    """What the centre's TLS service showed of itself."""

    expires: datetime
    tls_version: str
    protocol: str | None  # agreed on in the handshake: h2


def node_environment(home: Path) -> dict[str, str]:
    """Gives the environment of the hospital's processes, the site's proxy spelt as gRPC reads it.

    gRPC knows `https_proxy` and `no_proxy` in small letters alone, httpx both; loopback never goes through a proxy.
    """
    environment = flower_environment(home)
    if environment.get("HTTPS_PROXY"):
        environment.setdefault("https_proxy", environment["HTTPS_PROXY"])
    listed = [environment.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    hosts = dict.fromkeys(host.strip() for host in ",".join([*listed, *_LOCAL_HOSTS]).split(",") if host.strip())
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(hosts)
    return environment


def proxy_for(host: str, environment: Mapping[str, str]) -> str | None:
    """Gives the URL of the proxy that gRPC takes to a host, None where it goes there directly."""
    names = "grpc_proxy", "https_proxy", "http_proxy"
    proxy = next((environment[name] for name in names if environment.get(name)), None)
    direct = (environment.get("no_grpc_proxy") or environment.get("no_proxy", "")).split(",")
    is_direct = any(host.endswith(ending.strip()) for ending in direct if ending.strip())
    return None if proxy is None or is_direct else proxy


def connect(address: str, environment: Mapping[str, str]) -> socket.socket:
    """Opens a TCP connection to an address, through the proxy where there is one.

    Raises:
        OSError: The name does not resolve, nobody answers, or the proxy refuses.
    """
    host, port = split_address(address)
    proxy = proxy_for(host, environment)
    if proxy is None:
        return socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S)
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.hostname is None or parts.scheme != "http":
        raise OSError(f"the proxy {proxy!r} is not of the form http://host:port")
    connection = socket.create_connection((parts.hostname, parts.port or 80), timeout=CONNECT_TIMEOUT_S)
    try:
        _ask_for_tunnel(connection, address, user=parts.username, password=parts.password)
    except BaseException:
        connection.close()
        raise
    return connection


def _ask_for_tunnel(connection: socket.socket, address: str, *, user: str | None, password: str | None) -> None:
    lines = [f"CONNECT {address} HTTP/1.1", f"Host: {address}"]
    if user is not None:
        secret = f"{unquote(user)}:{unquote(password or '')}".encode()
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(secret).decode()}")
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        part = connection.recv(1)  # not a byte of what follows the header
        if not part or len(answer) > _MOST_HEADER_BYTES:
            raise OSError("the proxy closed the connection")
        answer += part
    status = answer.split(b"\r\n", 1)[0].decode("latin-1")
    if status.split(" ")[1:2] != ["200"]:
        raise OSError(f"the proxy refuses: {status}")


def shake_hands(connection: socket.socket, federation: FederationFile) -> ServerCertificate:
    """Does the TLS handshake on an open connection: the federation's authority alone is trusted, the name verified.

    Raises:
        OSError: The other end speaks no TLS, or shows another certificate (`ssl.SSLCertVerificationError`).
    """
    context = ssl.create_default_context(cadata=federation.ca_certificate)
    context.set_alpn_protocols(["h2"])
    host, _ = split_address(federation.address)
    with context.wrap_socket(connection, server_hostname=host) as tls:
        shown = tls.getpeercert() or {}
        expires = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)
        return ServerCertificate(expires, tls.version() or "TLS", tls.selected_alpn_protocol())


def another_centre(paths: SitePaths, federation: FederationFile) -> str | None:
    """Says that the federation's file is of another centre than this folder's; None where it is the same."""
    try:
        known = paths.ca_certificate.read_text(encoding="utf-8")
    except OSError:
        return None  # nothing is known of a centre
    before, now = (_fingerprint(text) for text in (known, federation.ca_certificate))
    if before == now:
        return None
    return (
        f"{paths.federation} is of another centre (federation {federation.name}, authority {now[:12]}…) than the one "
        f"this folder is enrolled with (authority {before[:12]}…): put that one's file back, or have this hospital "
        "enrolled anew where a centre changed its authority. Another federation has a folder of its own"
    )


def node_command(paths: SitePaths, federation: FederationFile, *, port: int) -> list[str]:
    """Gives the command of the SuperNode, and writes the authority that it trusts.

    Args:
        paths: The hospital's folder.
        federation: Whose centre to go to.
        port: Of the Runtime service on loopback.
    """
    paths.trusted.write_text(federation.ca_certificate, encoding="utf-8")
    return supernode_command(
        address=federation.address,
        ca_certificate=paths.trusted,
        key=paths.key,
        port=port,
        secret_file=paths.secret,
    )


def try_to_connect(paths: SitePaths, federation: FederationFile) -> NodeState:
    """Starts the SuperNode for as long as it takes to see whether the centre knows this hospital's key."""
    log_file = paths.logs / "check.log"
    log_file.unlink(missing_ok=True)
    command = node_command(paths, federation, port=free_port())
    group = ProcessGroup(
        [Command("supernode", command, node_environment(paths.flower_home), log_file, is_restarted=False)]
    )
    deadline, state = time.monotonic() + TRIAL_TIMEOUT_S, node_state("")
    group.start()
    try:
        while state == "starting" and time.monotonic() < deadline:
            time.sleep(0.1)
            code = group.tend()
            state = node_state(log_file.read_text(encoding="utf-8", errors="replace"))
            if code is not None:
                break
    finally:
        group.stop()
    return state


def _fingerprint(certificate: str) -> str:
    """SHA-256 of a certificate in PEM, however its lines are broken."""
    return hashlib.sha256("".join(certificate.split()).encode()).hexdigest()


def free_port() -> int:
    """Gives a port of loopback that nobody listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def is_port_free(port: int) -> bool:
    """Tells whether a port of loopback can be listened on."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as a server does: what lingers is no obstacle
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
