"""The federation's own certificate authority, and the SuperLink's certificate that it signs.

Hospitals trust this one authority and no other. Its key is needed only to issue the next server certificate and may
be kept elsewhere in between.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aecnn.errors import FaultyInputError

AUTHORITY_DAYS, SERVER_DAYS = 3653, 397
CLOCK_TOLERANCE = timedelta(hours=1)  # certificates begin so long ago, for clocks that are behind
LOCAL_HOSTS = ("localhost", "127.0.0.1")  # the centre itself connects on loopback
WARN_DAYS = 30


class CertificateError(FaultyInputError):
    """A certificate or key that is damaged, expired, or does not belong to the others."""


@dataclass(frozen=True)
class Issued:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


def make_authority(federation: str) -> Issued:
    """Makes a certificate authority that may sign server certificates, and nothing below them."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{federation} authority"[:64])])
    builder = _builder(subject=name, issuer=name, key=key, until=datetime.now(UTC) + timedelta(days=AUTHORITY_DAYS))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return _signed(builder, key, by=key)


def issue_server_certificate(authority: Issued, hosts: Sequence[str]) -> Issued:
    """Makes a key and a server certificate for these host names and addresses, and for loopback.

    Raises:
        CertificateError: The authority's files are damaged, or its time is over.
    """
    issuer, issuer_key = _load(authority, what="the authority")
    until = min(datetime.now(UTC) + timedelta(days=SERVER_DAYS), issuer.not_valid_after_utc)
    if issuer.not_valid_after_utc < datetime.now(UTC):
        raise CertificateError("the authority", [f"expired on {until:%Y-%m-%d}: make a new federation folder"])
    names = list(dict.fromkeys([*hosts, *LOCAL_HOSTS]))
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    builder = _builder(subject=subject, issuer=issuer.subject, key=key, until=until)
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    for extension, is_critical in (
        (x509.SubjectAlternativeName([_general_name(name) for name in names]), False),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(signs_certificates=False), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False),
    ):
        builder = builder.add_extension(extension, critical=is_critical)
    return _signed(builder, key, by=issuer_key)


def hosts_of(certificate: bytes) -> tuple[str, ...]:
    """Gives the names and addresses a server certificate (PEM) is for."""
    names = x509.load_pem_x509_certificate(certificate).extensions
    return tuple(str(name.value) for name in names.get_extension_for_class(x509.SubjectAlternativeName).value)


def certificate_faults(authority: bytes, server: Issued, *, host: str) -> list[str]:
    """Gives all that is wrong with a server certificate (PEM), as sentences; none where hospitals will accept it."""
    try:
        certificate, key = _load(server, what="the server certificate")
        issuer = x509.load_pem_x509_certificate(authority)
    except (CertificateError, ValueError) as error:
        return [f"the certificates cannot be read ({error}): restore them from a backup"]
    faults = []
    if certificate.public_key() != key.public_key():
        faults.append("the server's key is not the certificate's: run flower-server rotate-certificate")
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        faults.append("the server certificate was not signed by this folder's authority: restore tls/ from a backup")
    for what, one, remedy in (
        ("server certificate", certificate, "run flower-server rotate-certificate"),
        ("authority's certificate", issuer, "make a new federation folder"),
    ):
        if one.not_valid_after_utc < datetime.now(UTC):
            faults.append(f"the {what} expired on {one.not_valid_after_utc:%Y-%m-%d}: {remedy}")
        if one.not_valid_before_utc > datetime.now(UTC):
            faults.append(f"the {what} begins on {one.not_valid_before_utc:%Y-%m-%d}: set this machine's clock")
    if host not in (named := hosts_of(server.certificate)):
        faults.append(
            f"hospitals connect to {host!r}, and the server certificate is for {', '.join(named)}: "
            "run flower-server rotate-certificate"
        )
    return faults


def days_left(certificate: bytes) -> int:
    """Gives the days until a certificate (PEM) expires; negative afterwards."""
    return (x509.load_pem_x509_certificate(certificate).not_valid_after_utc - datetime.now(UTC)).days


def read_issued(certificate: Path, key: Path) -> Issued:
    """Reads a certificate and its key.

    Raises:
        CertificateError: One of them cannot be read.
    """
    try:
        return Issued(certificate.read_bytes(), key.read_bytes())
    except OSError as error:
        raise CertificateError(
            error.filename, [f"cannot be read ({error.strerror}): restore it from a backup"]
        ) from error


def _load(issued: Issued, *, what: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(issued.certificate)
        key = load_pem_private_key(issued.key, None)
    except (ValueError, TypeError) as error:
        raise CertificateError(what, ["is damaged: restore tls/ from a backup"]) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(what, ["has a key of another kind than this software makes"])
    return certificate, key


def _builder(
    *, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - CLOCK_TOLERANCE)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, *, by: ec.EllipticCurvePrivateKey
) -> Issued:
    certificate = builder.sign(by, hashes.SHA384())
    key_text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Issued(certificate.public_bytes(Encoding.PEM), key_text)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
