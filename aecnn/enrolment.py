"""The two files that a centre and a hospital hand each other before any message: by mail, on paper, as they trust.

``federation.yaml`` is the centre's public half. The enrolment request is the hospital's: its public key and what it
declares to hold. Neither is secret; both sides compare the fingerprints by another way, such as the telephone.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from aecnn.config import ADDRESS, HOSPITAL_NAME, validate_config
from aecnn.errors import ConfigError
from aecnn.strict_model import StrictModel

FINGERPRINT = r"^[0-9a-f]{64}$"


class FederationFile(StrictModel):
    """What a hospital must know of a federation to join it (``federation.yaml``)."""

    format_version: Literal[1] = 1
    name: str = Field(pattern=HOSPITAL_NAME)
    address: str = Field(pattern=ADDRESS)  # host:port that hospitals connect to
    ca_certificate: str = Field(pattern=r"^-----BEGIN CERTIFICATE-----")  # PEM; the only authority trusted
    code_fingerprints: tuple[str, ...] = Field(min_length=1)  # of `aecnn.contract.code_fingerprint`
    exchanged: dict[str, dict[str, tuple[str, ...]]]  # `aecnn.contract.exchange_schema`


class EnrolmentRequest(StrictModel):
    """What a hospital asks to be enrolled with (``enrolment-request.json``)."""

    format_version: Literal[1] = 1
    name: str = Field(pattern=HOSPITAL_NAME)
    public_key: str = Field(pattern=r"^-----BEGIN PUBLIC KEY-----")  # PEM of a P-384 key
    num_images: int = Field(ge=1)  # declared: no update may claim more
    num_patients: int = Field(ge=1)
    code_fingerprint: str = Field(pattern=FINGERPRINT)

    @field_validator("public_key")
    @classmethod
    def _p384_in_one_spelling(cls, text: str) -> str:
        return normalised_public_key(text)

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if self.num_patients > self.num_images:
            raise ValueError(f"{self.num_patients} patients with {self.num_images} images")
        return self

    @property
    def key_fingerprint(self) -> str:
        """SHA-256 of the key, in groups of four, to be read out over the telephone."""
        return key_fingerprint(self.public_key)


SITE_FILE, FEDERATION_FILE, REQUEST_FILE = "site.yaml", "federation.yaml", "enrolment-request.json"


def key_fingerprint(public_key: str) -> str:
    """Gives the first half of the SHA-256 of a public key (PEM), in groups of four digits."""
    digits = hashlib.sha256("".join(public_key.split()).encode()).hexdigest()[:32]
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def normalised_public_key(text: str) -> str:
    """Gives a P-384 public key as the PEM that everyone writes for it: nodes are known by these very bytes.

    Raises:
        ValueError: It is no public key, or one of another kind.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("is not a public key in PEM format: let aecnn-client init write the request") from None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise ValueError("is not a key on the curve P-384: let aecnn-client init write the request")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def read_request(path: Path) -> EnrolmentRequest:
    """Reads an enrolment request as a hospital sent it.

    Raises:
        ConfigError: It cannot be read, or is none; all faults at once.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(path, [f"cannot be read ({error.strerror}): give the hospital's {REQUEST_FILE}"]) from error
    except ValueError as error:
        raise ConfigError(path, [f"is not JSON ({error}): give the hospital's {REQUEST_FILE}"]) from error
    return validate_config(document, EnrolmentRequest, subject=path)


def split_address(address: str) -> tuple[str, int]:
    """Gives host and port of an `ADDRESS`; an IPv6 host without its brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


@contextmanager
def whole_file(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Gives a path beside `path` to write to; it takes the place of `path`, on disk, when the context ends well."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.touch(mode=mode)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_private(path: Path, content: bytes) -> None:
    """Writes a secret that only its owner may read (0600); an existing file is never replaced.

    Raises:
        FileExistsError: It is there already.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Brings a folder's names to disk: until then a power cut may give back the file that was replaced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
