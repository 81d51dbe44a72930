"""The files that centre and hospital hand each other, and how they are written."""

import json
import os
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from aecnn.enrolment import read_request, split_address, whole_file, write_private
from aecnn.errors import ConfigError
from centre_in_folder import new_key, public_pem, write_request


def test_a_request_is_read_as_it_was_written(tmp_path):
    key = public_pem(new_key())
    request = read_request(write_request(tmp_path / "r.json", name="st-anna", public_key=key))
    assert (request.name, request.public_key, request.num_images) == ("st-anna", key, 120)


def test_one_key_has_one_spelling_and_one_fingerprint(tmp_path):
    key = public_pem(new_key())
    plain = read_request(write_request(tmp_path / "a.json", public_key=key))
    mailed = read_request(write_request(tmp_path / "b.json", public_key=key.replace("\n", "\r\n") + "\r\n"))
    assert mailed.public_key == plain.public_key
    assert mailed.key_fingerprint == plain.key_fingerprint
    groups = plain.key_fingerprint.split(" ")
    assert [len(group) for group in groups] == [4] * 8
    assert read_request(write_request(tmp_path / "c.json")).key_fingerprint != plain.key_fingerprint


def _pem(key):
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"public_key": _pem(ec.generate_private_key(ec.SECP256R1()))}, "P-384"),
        ({"public_key": _pem(ed25519.Ed25519PrivateKey.generate())}, "P-384"),
        ({"public_key": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"}, "not a public key"),
        ({"public_key": "ssh-ed25519 AAAA"}, "public_key"),
        ({"num_images": 3, "num_patients": 4}, "4 patients with 3 images"),
        ({"num_images": 0}, "num_images"),
        ({"name": "../a"}, "name"),
        ({"private_key": "x"}, "no such key"),
    ],
)
def test_a_request_that_cannot_be_is_refused_with_what_was_found(tmp_path, changes, told):
    with pytest.raises(ConfigError, match=told):
        read_request(write_request(tmp_path / "r.json", **changes))


def test_what_is_no_request_is_told_in_a_sentence(tmp_path):
    (tmp_path / "r.json").write_bytes(b"\xff\xfe{")
    for path in (tmp_path / "r.json", tmp_path / "absent.json", tmp_path):
        with pytest.raises(ConfigError, match=r"enrolment-request\.json"):
            read_request(path)


def test_a_secret_is_for_its_owner_and_never_replaced(tmp_path):
    path = tmp_path / "key"
    previous = os.umask(0)
    try:
        write_private(path, b"secret")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write_private(path, b"other")
    assert path.read_bytes() == b"secret"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "state.json"
    with whole_file(path) as partial:
        partial.write_text("1")
    with pytest.raises(TypeError), whole_file(path) as partial:
        partial.write_text("half", encoding=3)
    assert path.read_text() == "1"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("address", "parts"),
    [("centre.example:9092", ("centre.example", 9092)), ("10.0.0.1:1", ("10.0.0.1", 1)), ("[::1]:80", ("::1", 80))],
)
def test_an_address_is_taken_apart(address, parts):
    assert split_address(address) == parts


def test_a_request_without_key_names_it(tmp_path):
    path = write_request(tmp_path / "r.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["public_key"], document["num_images"]
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match="2 faults") as error:
        read_request(path)
    assert "public_key: is missing" in str(error.value)
