"""The deployment files and the page that explains them: what they name exists."""

import configparser
import re
import shutil
import subprocess
import tomllib

import pytest
import typer
import yaml

import client.cli
import server.cli
from conftest import PROJECT

DEPLOY = PROJECT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
PAGE = (PROJECT / "docs" / "deploy.md").read_text(encoding="utf-8")
PROGRAMS = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
COMMANDS = {
    name: typer.main.get_command(app).commands
    for name, app in {"aecnn-client": client.cli.app, "flower-server": server.cli.app}.items()
}


def _refuse_unknown(command, where):
    """A command line of ours names a command that exists and options that it has."""
    program, *arguments = command
    program = program.rpartition("/")[2]
    assert program in PROGRAMS, f"{where}: {program}"
    if program not in COMMANDS or not arguments or arguments[0].startswith("-"):
        return
    known = COMMANDS[program].get(arguments[0])
    assert known is not None, f"{where}: {program} has no command {arguments[0]}"
    options = {option for parameter in known.params for option in parameter.opts} | {"--help"}
    unknown = [word for word in arguments[1:] if re.fullmatch(r"--?[a-z][a-z-]*", word) and word not in options]
    assert not unknown, f"{where}: {program} {arguments[0]} has no {', '.join(unknown)}"


def _unit(path):
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read_string(path.read_text(encoding="utf-8"))
    return parser


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_starts_a_command_that_exists_as_a_user_of_its_own_who_can_write_one_folder(path):
    service = _unit(path)["Service"]
    assert path.stem in PROGRAMS
    command = service["ExecStart"].split()
    _refuse_unknown(command, path.name)
    assert command[0] == f"/opt/aecnn/bin/{path.stem}"
    assert service["User"] == path.stem
    (folder,) = service["ReadWritePaths"].split()
    assert command[command.index("--folder") + 1].startswith(f"{folder}/")
    for key, value in {
        "ProtectSystem": "strict",
        "NoNewPrivileges": "true",
        "PrivateTmp": "true",
        "CapabilityBoundingSet": "",
        "Restart": "on-failure",
        "KillMode": "mixed",
        "UMask": "0077",
    }.items():
        assert service[key] == value


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_finds_no_fault_in_a_unit(path, tmp_path):
    program = tmp_path / "bin" / path.stem
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / path.name
    unit.write_text(path.read_text().replace("/opt/aecnn/bin", str(program.parent)))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_container_runs_one_of_our_commands_and_only_the_centre_opens_a_port():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert {name: service["profiles"] for name, service in services.items()} == {
        "centre": ["centre"],
        "hospital": ["cpu"],
        "hospital-gpu": ["gpu"],
    }
    for name, service in services.items():
        _refuse_unknown(service["command"], f"compose.yaml, {name}")
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service.get("ports", []) == (["9092:9092"] if name == "centre" else [])
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert service["command"][-1] == "/folder"
        mounts = [volume.rsplit(":/", 1)[1] for volume in service["volumes"]]
        assert mounts == (["folder"] if name == "centre" else ["folder", "data:ro", "ledger"])
    (device,) = services["hospital-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "deploy" not in services["hospital"]


def test_the_image_is_built_from_files_that_exist_and_holds_all_packages():
    lines = (DEPLOY / "Containerfile").read_text(encoding="utf-8").splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert [name for name in copied if not (PROJECT / name).exists()] == []
    packages = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(packages["packages"]) < set(copied)
    assert any(line.startswith("USER ") and line != "USER root" for line in lines)


def test_every_command_of_the_page_exists():
    shown = re.findall(
        r"^(?:sudo (?:-u \S+ )?)?((?:\S*/)?(?:aecnn-client|flower-server|aecnn) .+)$", PAGE, re.MULTILINE
    )
    quoted = re.findall(r"`((?:aecnn-client|flower-server|aecnn) [^`]+)`", PAGE)
    assert len(shown) + len(quoted) >= 20
    for command in shown + quoted:
        _refuse_unknown(command.split("#")[0].split(), "docs/deploy.md")


def test_the_page_leaves_out_no_command():
    for program, commands in COMMANDS.items():
        missing = [name for name in commands if not re.search(rf"{program}`? .*\b{name}\b|`{name}`", PAGE)]
        assert missing == [], program


def test_every_file_that_the_page_points_to_exists():
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", PAGE) if "://" not in link]
    named = re.findall(r"`((?:deploy|docs|configs)/[\w./-]+)`", PAGE)
    assert [link for link in links if not (PROJECT / "docs" / link).exists()] == []
    assert [name for name in named if not (PROJECT / name).exists()] == []
    assert "TODO" not in PAGE
