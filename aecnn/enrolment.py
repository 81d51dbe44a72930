"""The two files that a centre and a hospital hand each other before any message: by mail, on paper, as they trust.

``federation.yaml`` is the centre's public half. The enrolment request is the hospital's: its public key and what it
declares to hold. Neither is secret; both sides compare the fingerprints by another way, such as the telephone.
"""

import hashlib
import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from aecnn.config import HOSPITAL_NAME, StrictModel

ADDRESS = r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$"
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

    @property
    def key_fingerprint(self) -> str:
        """SHA-256 of the key, in groups of four, to be read out over the telephone."""
        digits = hashlib.sha256("".join(self.public_key.split()).encode()).hexdigest()[:32]
        return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


SITE_FILE, FEDERATION_FILE, REQUEST_FILE = "site.yaml", "federation.yaml", "enrolment-request.json"


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
