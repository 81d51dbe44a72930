"""A hospital's folder: made once by ``aecnn-client init``, with a key pair that never leaves it."""

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aecnn.config import load_config
from aecnn.contract import code_fingerprint
from aecnn.enrolment import EnrolmentRequest, FederationFile, whole_file, write_private
from aecnn.errors import ConfigError, ManifestError
from client.ledger_store import LedgerStore, create_ledger, has_ledger, refuse_network_folder
from client.paths import SitePaths
from client.site import SiteConfig, read_hospital
from client.site_template import site_file_text
from client.state import SiteState


@dataclass(frozen=True)
class Made:
    """What `make_folder` made, and what stands in the way of taking part with it as it is."""

    request: EnrolmentRequest | None  # None: the data cannot be read as the site file says now
    data_fault: str | None
    warnings: tuple[str, ...]
    ledger_folder: Path
    is_new_ledger: bool  # False: it was there before, and what it knows counts here too


def default_ledger_folder() -> Path:
    """Gives where the privacy ledger of this account lies: one for all clients, so that a new one resets nobody."""
    home = os.environ.get("XDG_DATA_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".local" / "share") / "aecnn" / "privacy-ledger"


def make_folder(
    folder: Path,
    *,
    federation: Path,
    name: str,
    data: Path,
    device: str = "auto",
    local_port: int = 8100,
    ledger_folder: Path | None = None,
) -> Made:
    """Makes a hospital's folder, whole or not at all: site file, key pair, secrets, enrolment request.

    A table that only a mapping in the site file can read is no reason to make nothing: the request is then missing.
    A privacy ledger that is there is used; an empty one is made where there is none.

    Args:
        folder: What to make; it may be there, if it is empty.
        federation: The centre's ``federation.yaml``.
        name: The hospital's.
        data: Its radiographs.
        device: What to train on.
        local_port: Of the client's own service on loopback.
        ledger_folder: Of the privacy ledger; None: this account's (`default_ledger_folder`).

    Raises:
        ConfigError: The folder is in use, or one of the values is faulty.
        PrivacyError: There can be no ledger in its folder, or the one there is not to be trusted.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(folder, ["is there and not empty: name a new folder (one folder a federation)"])
    file = load_config(federation, FederationFile)
    data = Path(os.path.abspath(data.expanduser()))
    if not data.exists():
        raise ConfigError("--data", [f"{data} is not there: give the folder that holds the table and the images"])
    ledger = Path(os.path.abspath((ledger_folder or default_ledger_folder()).expanduser()))
    refuse_network_folder(ledger)
    site = site_file_text(
        name=name,
        validation_key=secrets.token_hex(16),
        device=device,
        local_port=local_port,
        data=data,
        ledger_folder=ledger,
    )
    parent = folder.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=parent))  # 0700
    except OSError as error:
        raise ConfigError(folder, [f"cannot be made ({error.strerror}): give a folder you may write to"]) from error
    try:
        made = _fill(SitePaths(unfinished), federation, file, site, ledger)
        unfinished.rename(folder.absolute())
    except BaseException:
        shutil.rmtree(unfinished)
        raise
    return made


def write_request(paths: SitePaths) -> EnrolmentRequest:
    """Writes the enrolment request anew: the key as it is, the dataset's training part counted now.

    Raises:
        ConfigError: The site file or the key is faulty.
        ManifestError: The dataset is faulty.
    """
    manifest = read_hospital(paths.site).manifest
    request = EnrolmentRequest(
        name=load_config(paths.site, SiteConfig).name,
        public_key=public_key_of(paths.key),
        num_images=len(manifest),
        num_patients=len(manifest.patients),
        code_fingerprint=code_fingerprint(),
    )
    with whole_file(paths.request) as unfinished:
        unfinished.write_text(request.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return request


def rotate_key(paths: SitePaths) -> EnrolmentRequest:
    """Makes a new key pair and its enrolment request; the old key stays beside it until the new one has connected.

    Raises:
        ConfigError: An earlier rotation has not connected yet.
        ManifestError: The dataset is faulty; the key is then the old one.
    """
    if paths.old_key.exists():
        raise ConfigError(
            paths.old_key,
            [
                "is still there: the key made last has not connected yet. Have it enrolled and start the client, "
                f"or go back: mv {paths.old_key.name} {paths.key.name}"
            ],
        )
    public_key_of(paths.key)
    paths.key.rename(paths.old_key)
    try:
        write_key(paths.key)
        return write_request(paths)
    except BaseException:
        paths.old_key.replace(paths.key)
        raise


def write_key(path: Path) -> None:
    """Writes a new private key, readable by its owner alone."""
    key = ec.generate_private_key(ec.SECP384R1())
    kinds = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    write_private(path, key.private_bytes(*kinds))


def public_key_of(path: Path) -> str:
    """Gives the public half of a private key, as PEM.

    Raises:
        ConfigError: The key is missing, readable by others, or no key of this kind.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(path, [f"cannot be read ({error.strerror}): aecnn-client init makes it"]) from error
    if mode & 0o077:
        raise ConfigError(path, [f"is open to other accounts (mode {mode:04o}): chmod 600 {path}"])
    try:
        key = serialization.load_ssh_private_key(content, password=None)
    except ValueError as error:
        raise ConfigError(path, ["is no private key in OpenSSH format: restore it, or start a new folder"]) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(path, ["is no elliptic-curve key: restore it, or start a new folder"])
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def _fill(paths: SitePaths, federation: Path, file: FederationFile, site: str, ledger: Path) -> Made:
    paths.state.mkdir(mode=0o700)
    paths.site.write_text(site, encoding="utf-8")
    load_config(paths.site, SiteConfig)
    shutil.copyfile(federation, paths.federation)
    paths.ca_certificate.write_text(file.ca_certificate, encoding="utf-8")
    write_key(paths.key)
    write_private(paths.secret, secrets.token_hex(32).encode())
    request, fault = None, None
    try:
        request = write_request(paths)
    except ManifestError as error:
        fault = str(error)
    is_new = not has_ledger(ledger)
    mark = create_ledger(ledger) if is_new else LedgerStore(ledger).mark()
    SiteState(paths.database).set_ledger_seen(mark)
    return Made(request, fault, tuple(_warnings(file, fault)), ledger, is_new)


def _warnings(file: FederationFile, data_fault: str | None) -> Iterator[str]:
    if code_fingerprint() not in file.code_fingerprints:
        yield "the code installed here is not among what the federation accepts: install the version the centre names"
    if data_fault is not None:
        yield f"there is no enrolment request yet: mend `data:` in site.yaml, then aecnn-client request. {data_fault}"
