"""The folder of wheels for hospitals without a package index: made by the real script, installed without a network.

The wheels of others are empty here, and one of them lends what this machine has installed.
"""

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from conftest import PROJECT

pytestmark = pytest.mark.slow

DECLARED = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
BUNDLE = PROJECT / "deploy" / "bundle.sh"


def _run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def _write_empty_wheel(folder: Path, requirement: Requirement, **files: str) -> None:
    name, version = requirement.name.replace("-", "_"), metadata.version(requirement.name)  # as installed here
    extras = "".join(f"Provides-Extra: {extra}\n" for extra in requirement.extras)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{extras}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*wheel.namelist(), f"{info}/RECORD"]))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for an index: what builds our wheel, and an empty wheel for each requirement."""
    folder = tmp_path_factory.mktemp("index")
    build = DECLARED["build-system"]["requires"]
    fetched = _run(sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder, *build)
    if fetched.returncode != 0:
        pytest.skip(f"no package index can be reached: {fetched.stderr.strip()[-200:]}")
    project = DECLARED["project"]
    required = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["dicom"]]
    for number, requirement in enumerate(required):
        lent = {"lent.pth": sysconfig.get_path("purelib") + "\n"} if number == 0 else {}
        _write_empty_wheel(folder, requirement, **lent)
    return folder


def test_a_bundle_installs_without_an_index_and_never_with_a_damaged_wheel(index, tmp_path):
    bundle, venv = tmp_path / "bundle", tmp_path / "venv"
    offline = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    made = _run("bash", BUNDLE, sys.executable, bundle, **offline)
    assert made.returncode == 0, made.stderr
    assert not list(tmp_path.glob("*.partial"))
    wheels = {wheel.name.split("-")[0].lower() for wheel in bundle.glob("*.whl")}
    assert {"aecnn_federated", "torch", "flwr", "pydicom"} <= wheels

    installed = _run("bash", bundle / "install.sh", venv, sys.executable)
    assert installed.returncode == 0, installed.stderr
    told = _run(venv / "bin" / "python", "-P", "-c", "import aecnn, client, server; print(client.__file__)")
    assert Path(told.stdout.strip()).is_relative_to(venv), told.stdout + told.stderr
    assert "enroll" in _run(venv / "bin" / "flower-server", "--help").stdout

    ours = next(bundle.glob("aecnn_federated-*.whl"))
    ours.write_bytes(ours.read_bytes()[:-1] + b"x")
    refused = _run("bash", bundle / "install.sh", tmp_path / "other", sys.executable)
    assert refused.returncode != 0
    assert ours.name in refused.stdout + refused.stderr
    assert not (tmp_path / "other").exists()


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path):
    precious = tmp_path / "home" / "precious"
    precious.parent.mkdir()
    precious.write_text("kept")
    refused = _run("bash", BUNDLE, sys.executable, precious.parent)
    assert refused.returncode == 2
    assert "no bundle" in refused.stderr
    assert precious.read_text() == "kept"
