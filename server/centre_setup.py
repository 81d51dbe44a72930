"""A new federation folder, and the parts of it that are written again in its life: certificate and public half."""

import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from aecnn.config import ADDRESS, HOSPITAL_NAME, dump_config
from aecnn.contract import code_fingerprint, exchange_schema
from aecnn.enrolment import FederationFile, split_address, whole_file, write_private
from aecnn.errors import ConfigError
from aecnn.strict_model import StrictModel
from server.centre_template import server_yaml
from server.certificates import Issued, hosts_of, issue_server_certificate, make_authority, read_issued
from server.roster import Roster
from server.settings import CentrePaths, ServerConfig, read_server_config

HOST = r"^[A-Za-z0-9.-]+$|^[0-9a-fA-F:]+$"
_ANY_HOST = ("0.0.0.0", "::")  # noqa: S104  refused here, not bound


class NewFederation(StrictModel):
    """What a person says of a federation to be made."""

    name: str = Field(pattern=HOSPITAL_NAME)
    address: str = Field(pattern=ADDRESS)
    listen: str = Field(pattern=ADDRESS)
    local_port: int = Field(ge=1, le=65535)
    host_names: tuple[str, ...] = ()  # that the certificate is for, besides the address's

    @model_validator(mode="after")
    def _addresses_fit(self) -> Self:
        host, port = split_address(self.address)
        listen_port = split_address(self.listen)[1]
        problems = [f"no port has the number {number}" for number in (port, listen_port) if not 0 < number < 2**16]
        if host in _ANY_HOST:
            problems.append(f"address is {self.address}: give the name or address that hospitals connect to")
        if listen_port == self.local_port:
            problems.append(f"listen and local_port are both {self.local_port}: hospitals must not reach the latter")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def make_federation(folder: Path, wanted: NewFederation) -> CentrePaths:
    """Makes a federation folder, whole or not at all.

    Raises:
        ConfigError: Something is there already, or the folder cannot be made.
    """
    paths = CentrePaths(folder)
    refuse_used(paths.folder)
    try:
        paths.folder.parent.mkdir(parents=True, exist_ok=True)
        is_new = not paths.folder.exists()
        place = paths.folder.parent if is_new else paths.folder
        partial = Path(tempfile.mkdtemp(prefix=f".{paths.folder.name}-", dir=place))  # 0700
    except OSError as error:
        raise ConfigError(paths.folder, [f"cannot be made ({error.strerror}): give another folder"]) from error
    try:
        _fill(CentrePaths(partial), wanted)
        if is_new:
            partial.rename(paths.folder)
        else:  # a mounted folder, or the current one, cannot be replaced
            _move_into(partial, paths.folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return paths


def refuse_used(folder: Path) -> None:
    """Refuses a folder in which something is.

    Raises:
        ConfigError: It is there and not an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(folder, ["holds something already: give a new or empty folder"])


def _fill(paths: CentrePaths, wanted: NewFederation) -> None:
    for folder in (paths.ca_key.parent, paths.state, paths.runs):
        folder.mkdir(mode=0o700)
    authority = make_authority(wanted.name)
    paths.ca_certificate.write_bytes(authority.certificate)
    write_private(paths.ca_key, authority.key)
    server = issue_server_certificate(authority, [split_address(wanted.address)[0], *wanted.host_names])
    paths.certificate.write_bytes(server.certificate)
    write_private(paths.key, server.key)
    write_private(paths.secret, secrets.token_hex(32).encode())
    paths.roster.write_text(Roster().model_dump_json(indent=2) + "\n", encoding="utf-8")
    text = server_yaml(name=wanted.name, address=wanted.address, listen=wanted.listen, local_port=wanted.local_port)
    paths.config.write_text(text, encoding="utf-8")
    write_federation(paths, read_server_config(paths.config))


def _move_into(source: Path, target: Path) -> None:
    moved: list[Path] = []
    try:
        for child in sorted(source.iterdir(), key=lambda path: path.name == "server.yaml"):  # what makes it one, last
            child.rename(target / child.name)
            moved.append(target / child.name)
        source.rmdir()
        target.chmod(0o700)
    except BaseException:
        for path in moved:
            path.rename(source / path.name)
        raise


def federation_file(paths: CentrePaths, config: ServerConfig) -> FederationFile:
    """Gives the public half, as hospitals need it now."""
    return FederationFile(
        name=config.name,
        address=config.address,
        ca_certificate=paths.ca_certificate.read_text(encoding="ascii"),
        code_fingerprints=tuple(dict.fromkeys([code_fingerprint(), *config.accepted_fingerprints])),
        exchanged=exchange_schema(),
    )


def write_federation(paths: CentrePaths, config: ServerConfig) -> None:
    """Writes ``federation.yaml``."""
    text = "# For hospitals: aecnn-client init DIR --federation federation.yaml. Nothing in it is secret.\n"
    with whole_file(paths.federation) as partial:
        partial.write_text(text + dump_config(federation_file(paths, config)), encoding="utf-8")


def rotate_certificate(paths: CentrePaths, config: ServerConfig, *, host_names: Sequence[str]) -> tuple[str, ...]:
    """Issues a new server certificate for the address in the configuration, the names of the old one and more.

    Returns:
        The names it is for.
    """
    old = hosts_of(paths.certificate.read_bytes()) if paths.certificate.exists() else ()
    authority = read_issued(paths.ca_certificate, paths.ca_key)
    issued = issue_server_certificate(authority, [split_address(config.address)[0], *old, *host_names])
    _replace_server_files(paths, issued)
    return hosts_of(issued.certificate)


def _replace_server_files(paths: CentrePaths, issued: Issued) -> None:
    with whole_file(paths.key, mode=0o600) as key, whole_file(paths.certificate) as certificate:
        key.write_bytes(issued.key)
        certificate.write_bytes(issued.certificate)
