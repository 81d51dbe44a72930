"""A hospital's folder on this machine, and ``aecnn-client`` as its engineer runs it, for tests."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import client.cli
from aecnn.config import dump_config
from aecnn.contract import code_fingerprint, exchange_schema
from aecnn.enrolment import FederationFile
from client.paths import SitePaths
from server.certificates import make_authority

CLIENT = [sys.executable, "-c", "from client.cli import main; main()"]


def federation_file(path: Path, *, address="127.0.0.1:9", authority=None, **changes) -> Path:
    """A centre's federation.yaml, by default of a centre that nobody runs."""
    certificate = (authority or make_authority("test")).certificate.decode()
    document = {
        "name": "test",
        "address": address,
        "ca_certificate": certificate,
        "code_fingerprints": (code_fingerprint(),),
        "exchanged": exchange_schema(),
    }
    path.write_text(dump_config(FederationFile(**document | changes)), encoding="utf-8")
    return path


VALIDATION_KEY = "a-key-of-tests"


def make_hospital(folder: Path, data: Path, *, federation: Path, name="st-mary", **replaced) -> SitePaths:
    """A folder as ``aecnn-client init`` makes it; `replaced` are texts of its site file, old="new".

    Who validates follows from a key of tests, where `init` draws one: no test is to fail for a draw of nobody.
    """
    from client.setup import make_folder

    replaced = {"validation_key": VALIDATION_KEY} | replaced

    make_folder(folder, federation=federation, name=name, data=data, device="cpu")
    paths = SitePaths(folder)
    text = paths.site.read_text(encoding="utf-8")
    for old, new in replaced.items():
        assert f"{old}: " in text
        lines = [
            line.split(old)[0].replace("# ", "") + f"{old}: {new}" if f"{old}: " in line else line
            for line in text.splitlines()
        ]
        text = "\n".join(lines) + "\n"
    paths.site.write_text(text, encoding="utf-8")
    return paths


def aecnn_client(*arguments, code=0, stdin=None):
    """Runs ``aecnn-client`` in this process, without a terminal; gives standard output and standard error."""
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    command = ["aecnn-client", *map(str, arguments)]
    with (
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        patch.object(sys, "argv", command),
        patch.object(sys, "stdin", stdin or io.StringIO()),
    ):
        try:
            client.cli.main()
        except SystemExit as end:
            status = end.code or 0
    assert status == code, f"exit code {status}\n{stdout.getvalue()}\n{stderr.getvalue()}"
    return stdout.getvalue(), stderr.getvalue()


@contextlib.contextmanager
def client_started(paths: SitePaths, **environment):
    """``aecnn-client start`` in the background, ended with the context."""
    with (paths.folder / "start.log").open("wb") as output:
        process = subprocess.Popen(
            [*CLIENT, "start", "--folder", str(paths.folder)],
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
