"""The federation's authority and the server certificate, judged by OpenSSL where it can judge."""

import shutil
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime

import pytest
from cryptography import x509

import server.certificates
from server.certificates import (
    CertificateError,
    Issued,
    certificate_faults,
    days_left,
    hosts_of,
    issue_server_certificate,
    make_authority,
)

HOSTS = ["centre.example", "10.1.2.3"]


@pytest.fixture(scope="module")
def authority():
    return make_authority("test")


def _write(folder, authority, issued):
    for name, content in (("ca.pem", authority.certificate), ("s.pem", issued.certificate), ("s.key", issued.key)):
        (folder / name).write_bytes(content)
    return folder


def _handshake(folder, host, *, trusts):
    """A TLS connection between two sockets of this process, checked as strictly as Python can."""
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(folder / "s.pem", folder / "s.key")
    client_side = ssl.create_default_context(cafile=trusts)
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve():
        try:
            server_side.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client_side.wrap_socket(ours, server_hostname=host):
            return True
    except ssl.SSLError:
        return False
    finally:
        ours.close()
        thread.join()


def test_hospitals_accept_the_server_by_every_name_and_by_no_other(authority, tmp_path):
    folder = _write(tmp_path, authority, issue_server_certificate(authority, HOSTS))
    for host in (*HOSTS, "localhost", "127.0.0.1"):
        assert _handshake(folder, host, trusts=folder / "ca.pem"), host
    for host in ("other.example", "127.0.0.2"):
        assert not _handshake(folder, host, trusts=folder / "ca.pem"), host


def test_a_foreign_authority_is_refused(authority, tmp_path):
    folder = _write(tmp_path, make_authority("test"), issue_server_certificate(authority, HOSTS))
    assert not _handshake(folder, "centre.example", trusts=folder / "ca.pem")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_finds_the_chain_good_for_a_server_and_for_nothing_else(authority, tmp_path):
    folder = _write(tmp_path, authority, issue_server_certificate(authority, HOSTS))
    command = ["openssl", "verify", "-x509_strict", "-CAfile", folder / "ca.pem"]
    for purpose, is_good in (("sslserver", True), ("sslclient", False)):
        done = subprocess.run([*command, "-purpose", purpose, folder / "s.pem"], capture_output=True, check=False)
        assert (done.returncode == 0) == is_good, done


def test_the_server_certificate_cannot_sign_another(authority):
    issued = issue_server_certificate(authority, HOSTS)
    certificate = x509.load_pem_x509_certificate(issued.certificate)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_it_lasts_397_days_the_authority_ten_years(authority):
    assert days_left(issue_server_certificate(authority, HOSTS).certificate) in (396, 397)
    assert days_left(authority.certificate) in (3652, 3653)


def test_nothing_is_wrong_with_a_fresh_one(authority):
    issued = issue_server_certificate(authority, HOSTS)
    assert certificate_faults(authority.certificate, issued, host="centre.example") == []
    assert set(hosts_of(issued.certificate)) == {*HOSTS, "localhost", "127.0.0.1"}


def test_each_fault_is_named_with_its_remedy(authority, monkeypatch):
    good = issue_server_certificate(authority, HOSTS)
    other = issue_server_certificate(authority, HOSTS)
    monkeypatch.setattr(server.certificates, "SERVER_DAYS", -0.01)
    expired = issue_server_certificate(authority, HOSTS)
    cases = [
        (good, "moved.example", "'moved.example'", "rotate-certificate"),
        (Issued(good.certificate, other.key), "centre.example", "key is not the certificate's", "rotate-certificate"),
        (issue_server_certificate(make_authority("x"), HOSTS), "centre.example", "authority", "backup"),
        (expired, "centre.example", f"expired on {datetime.now(UTC):%Y-%m-%d}", "rotate-certificate"),
        (Issued(b"nonsense", good.key), "centre.example", "damaged", "backup"),
    ]
    for issued, host, found, remedy in cases:
        faults = certificate_faults(authority.certificate, issued, host=host)
        assert any(found in fault and remedy in fault for fault in faults), faults


def test_an_authority_whose_time_is_over_signs_nothing(monkeypatch):
    monkeypatch.setattr(server.certificates, "AUTHORITY_DAYS", -0.01)
    with pytest.raises(CertificateError, match="expired"):
        issue_server_certificate(make_authority("old"), HOSTS)
