"""What ``aecnn-client init`` makes: a folder whole or not at all, a key that stays, a file that explains itself."""

import re
import stat
from pathlib import Path

import pandas as pd
import pytest
import yaml
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from aecnn.config import FilesConfig, TableConfig, load_config, validate_config
from aecnn.contract import code_fingerprint
from aecnn.enrolment import FederationFile, read_request
from aecnn.errors import ConfigError, ManifestError
from client.paths import SitePaths
from client.setup import make_folder, public_key_of, rotate_key, write_request
from client.site import AcceptedConfig, PolicyConfig, PrivacyPolicyConfig, ReportConfig, SiteConfig, SiteDataConfig
from client.site_template import site_file_text
from hospital_in_folder import federation_file, make_hospital

SECTIONS = {
    (): SiteConfig,
    ("data",): SiteDataConfig,
    ("data", "table"): TableConfig,
    ("data", "files"): FilesConfig,
    ("policy",): PolicyConfig,
    ("policy", "report"): ReportConfig,
    ("policy", "accept"): AcceptedConfig,
    ("policy", "privacy"): PrivacyPolicyConfig,
}
KEYS = {key for section in SECTIONS.values() for key in section.model_fields}
COMMENTED_KEY = re.compile(rf"^( *)# ((?:{'|'.join(KEYS)}):.*)$", re.MULTILINE)


def _made(tmp_path, data, **changes):
    values = {"federation": federation_file(tmp_path / "federation.yaml"), "name": "st-mary", "device": "cpu"}
    return make_folder(tmp_path / "site", data=data, **values | changes), SitePaths(tmp_path / "site")


def _site_text(tmp_path):
    return site_file_text(
        name="null", validation_key="a-long-secret", device="auto", local_port=8100, data=tmp_path / "with: colon"
    )


def test_the_site_file_names_every_key_each_with_its_default(tmp_path):
    with_all_keys = yaml.safe_load(COMMENTED_KEY.sub(r"\1\2", _site_text(tmp_path)))
    for place, section in SECTIONS.items():
        found = with_all_keys
        for key in place:
            found = found[key]
        assert set(found) == set(section.model_fields), f"keys of {'.'.join(place) or 'the file'}"
    config = validate_config(with_all_keys, SiteConfig, subject="every key")
    assert (config.data.table, config.data.files) == (TableConfig(), FilesConfig())
    plain = SiteDataConfig(root=tmp_path / "with: colon")
    assert config.data.model_copy(update={"table": None}) == plain
    assert config.policy == PolicyConfig()


def test_the_site_file_as_it_is_written_means_the_defaults(tmp_path):
    (tmp_path / "site.yaml").write_text(_site_text(tmp_path))
    expected = SiteConfig(
        name="null",
        validation_key="a-long-secret",
        data=SiteDataConfig(root=tmp_path / "with: colon"),
        policy=PolicyConfig(),
    )
    assert load_config(tmp_path / "site.yaml", SiteConfig) == expected


def test_a_folder_holds_private_secrets_and_a_request_that_counts_the_training_part(phantom_64px, tmp_path):
    made, paths = _made(tmp_path, phantom_64px)
    assert stat.S_IMODE(paths.folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in (paths.key, paths.secret)] == [0o600, 0o600]
    request = read_request(paths.request)
    assert request == made.request
    assert not made.warnings
    rows = pd.read_csv(next(phantom_64px.glob("Data_Entry*.csv")))
    rows = rows[rows["Image Index"].isin((phantom_64px / "train_val_list.txt").read_text().split())]
    assert (request.num_images, request.num_patients) == (len(rows), rows["Patient ID"].nunique())
    key = load_ssh_private_key(paths.key.read_bytes(), None)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    assert request.public_key == public
    assert key.private_numbers().private_value not in (0, None)
    assert "PRIVATE" not in paths.request.read_text()
    assert request.code_fingerprint == code_fingerprint()
    assert paths.ca_certificate.read_text() == load_config(paths.federation, FederationFile).ca_certificate


def test_two_folders_share_no_secret(phantom_64px, tmp_path):
    kept = []
    for name in "ab":
        (tmp_path / name).mkdir()
        _, paths = _made(tmp_path / name, phantom_64px)
        kept.append(
            (load_config(paths.site, SiteConfig).validation_key, paths.secret.read_bytes(), paths.key.read_bytes())
        )
    assert all(one != other for one, other in zip(*kept, strict=True))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "../x"}, "name"),
        ({"name": ""}, "name"),
        ({"data": "absent"}, "absent is not there"),
        ({"federation": "none.yaml"}, "none.yaml"),
    ],
)
def test_a_faulty_value_makes_nothing_at_all(changes, told, phantom_64px, tmp_path):
    changes = {key: tmp_path / value if key != "name" else value for key, value in changes.items()}
    data = changes.pop("data", phantom_64px)
    with pytest.raises(ConfigError, match=told):
        _made(tmp_path, data, **changes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["federation.yaml"]


def test_a_folder_in_use_is_left_as_it_is(phantom_64px, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        _made(tmp_path, phantom_64px)
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["mine.txt"]


def test_an_empty_folder_becomes_the_hospitals(phantom_64px, tmp_path):
    (tmp_path / "site").mkdir()
    _, paths = _made(tmp_path, phantom_64px)
    assert paths.request.is_file()
    assert stat.S_IMODE(paths.folder.stat().st_mode) == 0o700


def test_a_table_that_needs_a_mapping_gives_a_folder_whose_request_follows(phantom_64px, tmp_path):
    root = tmp_path / "own"
    root.mkdir()
    (root / "images").symlink_to(phantom_64px / "images")
    names = sorted(path.name for path in (phantom_64px / "images").iterdir())[:12]
    rows = pd.DataFrame({"File": names, "MRN": [name[:8] for name in names], "Mass": 1})
    rows.to_csv(root / "export.csv", index=False)
    made, paths = _made(tmp_path, root)
    assert made.request is None
    assert made.data_fault
    assert any("no enrolment request yet" in warning for warning in made.warnings)
    assert not paths.request.exists()
    mapping = "  table: {file: export.csv, image_column: File, patient_column: MRN}\n"
    text = paths.site.read_text().replace("\npolicy:", f"\n{mapping}\npolicy:")
    paths.site.write_text(text)
    assert write_request(paths).num_images == 12


def test_code_that_the_federation_does_not_accept_is_told_and_makes_the_folder(phantom_64px, tmp_path):
    federation = federation_file(tmp_path / "other.yaml", code_fingerprints=("0" * 64,))
    made, paths = _made(tmp_path, phantom_64px, federation=federation)
    assert any("not among what the federation accepts" in warning for warning in made.warnings)
    assert paths.request.is_file()


def test_a_rotated_key_is_new_and_the_old_one_waits_until_it_has_connected(phantom_64px, tmp_path):
    paths = make_hospital(tmp_path / "site", phantom_64px, federation=federation_file(tmp_path / "f.yaml"))
    before = read_request(paths.request)
    old = paths.key.read_bytes()
    request = rotate_key(paths)
    assert request.public_key == public_key_of(paths.key) != before.public_key
    assert read_request(paths.request) == request
    assert request.model_copy(update={"public_key": before.public_key}) == before
    assert paths.old_key.read_bytes() == old
    assert stat.S_IMODE(paths.key.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="has not connected yet"):
        rotate_key(paths)
    assert public_key_of(paths.key) == request.public_key


def test_a_rotation_that_fails_leaves_the_old_key(phantom_64px, tmp_path):
    paths = make_hospital(tmp_path / "site", phantom_64px, federation=federation_file(tmp_path / "f.yaml"))
    old = paths.key.read_bytes()
    paths.site.write_text(paths.site.read_text().replace(str(phantom_64px), str(tmp_path / "gone")))
    with pytest.raises(ManifestError):
        rotate_key(paths)
    assert paths.key.read_bytes() == old
    assert not paths.old_key.exists()


def test_a_key_that_others_may_read_is_refused(phantom_64px, tmp_path):
    paths = make_hospital(tmp_path / "site", phantom_64px, federation=federation_file(tmp_path / "f.yaml"))
    paths.key.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        public_key_of(paths.key)
    paths.key.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        public_key_of(paths.key)
    paths.key.write_text("no key")
    paths.key.chmod(0o600)
    with pytest.raises(ConfigError, match="no private key"):
        public_key_of(paths.key)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    federation = federation_file(tmp_path / "federation.yaml")
    with pytest.raises(ConfigError, match="cannot be made"):
        make_folder(Path("/proc/nobody/site"), federation=federation, name="a", data=tmp_path)
