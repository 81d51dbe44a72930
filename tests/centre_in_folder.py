"""A federation folder on this machine, and its command line, for tests."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from aecnn.contract import code_fingerprint
from server.centre_setup import NewFederation, make_federation
from server.settings import CentrePaths

SERVER = [sys.executable, "-c", "from server.cli import main; main()"]


def free_port() -> int:
    """A port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_centre(folder: Path, **changes) -> CentrePaths:
    """A federation folder on free ports; `changes` are of the federation section of its server.yaml."""
    port = free_port()
    wanted = NewFederation(name="test", address=f"127.0.0.1:{port}", listen=f"127.0.0.1:{port}", local_port=free_port())
    paths = make_federation(folder, wanted)
    document = yaml.safe_load(paths.config.read_text(encoding="utf-8"))
    document["federation"] |= changes
    document["images"] |= {"size_px": 64, "crop_size_px": None}
    document["model"] |= {"backbone": "resnet18"}
    paths.config.write_text(yaml.safe_dump(document), encoding="utf-8")
    return paths


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def public_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def private_file(key: ec.EllipticCurvePrivateKey, path: Path) -> Path:
    """The key as a SuperNode reads it."""
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    return path


def write_request(path: Path, *, name="a", public_key=None, **changes) -> Path:
    """An enrolment request as a hospital would send it."""
    document = {
        "format_version": 1,
        "name": name,
        "public_key": public_key or public_pem(new_key()),
        "num_images": 120,
        "num_patients": 40,
        "code_fingerprint": code_fingerprint(),
    }
    path.write_text(json.dumps(document | changes), encoding="utf-8")
    return path


def flower_server(*arguments, code=0, timeout=120, **environment) -> tuple[str, str]:
    """Runs ``flower-server`` as a process without a terminal; gives standard output and standard error.

    It must end with `code`; None: with any.
    """
    done = subprocess.run(
        [*SERVER, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        check=False,
    )
    assert code in (None, done.returncode), f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


@contextlib.contextmanager
def started(paths: CentrePaths, *arguments, **environment):
    """``flower-server start`` in the background, ended with the context."""
    log = paths.folder / "start.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*SERVER, "start", "--folder", str(paths.folder), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def eventually(condition, *, timeout_s=120.0, what="it"):
    """Waits for a condition, and gives what it gave."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about in {timeout_s:.0f} s"
        time.sleep(0.2)
    return result
