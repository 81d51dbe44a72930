"""Site files: who a node is, and what it trains on."""

import gc
import shutil
import weakref

import numpy as np
import pandas as pd
import pytest
import yaml

from aecnn.config import ScannerConfig
from aecnn.data.scanner import shifted
from aecnn.errors import ConfigError, FederationError, ManifestError
from client import site as site_module
from client.site import hospital_of, read_hospital, read_training_data
from conftest import PROJECT


def _site(folder, root, **changes):
    document = {"name": "st-mary", "validation_key": "a-long-secret", "data": {"root": str(root)}} | changes
    folder.mkdir(exist_ok=True)
    (folder / "site.yaml").write_text(yaml.safe_dump(document))
    return folder / "site.yaml"


def test_a_hospital_holds_its_own_patients_and_no_test_image(phantom_64px, tmp_path):
    table = pd.read_csv(phantom_64px / "patients.csv", dtype=str)
    own = table["Patient ID"][table["Hospital"] == "hospital-2"].str.lstrip("0").tolist()
    (tmp_path / "mine.txt").write_text("\n".join(own))
    site = _site(tmp_path, phantom_64px, data={"root": str(phantom_64px), "patients_file": "mine.txt"})
    hospital = read_hospital(site)
    assert set(hospital.manifest.patients) < set(own)
    test_images = set((phantom_64px / "test_list.txt").read_text().split())
    assert not test_images & set(hospital.manifest.table["image"])


def test_no_patient_trains_and_validates_and_the_key_decides_who_does(phantom_64px, tmp_path):
    parts = []
    for key in ("a-long-secret", "a-long-secret", "another-secret"):
        folder = tmp_path / f"{key}-{len(parts)}"
        hospital = read_hospital(_site(folder, phantom_64px, validation_key=key))
        data = read_training_data(hospital, 32, 0.3)
        patients = data.loaded.manifest.table["patient"].to_numpy()
        train, validation = set(patients[data.train_rows]), set(patients[data.validation_rows])
        assert not train & validation
        assert train | validation == set(patients)
        parts.append(validation)
    assert parts[0] == parts[1] != parts[2]


def test_a_node_that_names_its_site_file_ignores_what_the_run_says(phantom_64px, tmp_path):
    site = _site(tmp_path, phantom_64px)
    run_config = {"hospitals": "/somewhere/else", "config": "configs/demo.yaml"}
    hospital = hospital_of({"site": str(site), "partition-id": 0, "num-partitions": 2}, run_config)
    assert hospital.config.name == "st-mary"


def test_a_node_that_is_neither_a_site_nor_simulated_is_refused(tmp_path):
    with pytest.raises(FederationError, match="names no site file"):
        hospital_of({}, {"config": "configs/demo.yaml"})
    with pytest.raises(FederationError, match="0 site files for 3 simulated nodes"):
        hospital_of({"partition-id": 0, "num-partitions": 3}, {"hospitals": str(tmp_path)})


def test_simulated_nodes_without_site_files_share_the_dataset_by_patient(phantom_64px, tmp_path):
    config = yaml.safe_load((PROJECT / "configs" / "flwr_run.yaml").read_text())
    config["data"] = {"root": str(phantom_64px)}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    shares = [
        set(
            hospital_of(
                {"partition-id": k, "num-partitions": 3}, {"config": str(tmp_path / "run.yaml")}
            ).manifest.patients
        )
        for k in range(3)
    ]
    assert all(shares)
    assert sum(map(len, shares)) == len(set.union(*shares))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "../x"}, "name"),
        ({"validation_key": "short"}, "validation_key"),
        ({"dat": {}}, "did you mean 'data'"),
        ({"data": {"root": "/absent"}}, "no folder /absent"),
    ],
)
def test_a_faulty_site_file_is_refused(changes, told, phantom_64px, tmp_path):
    with pytest.raises((ConfigError, ManifestError)) as refused:
        read_hospital(_site(tmp_path, phantom_64px, **changes))
    assert told in str(refused.value)


def test_a_hospital_without_a_patient_to_train_on_is_refused(phantom_64px, tmp_path):
    (tmp_path / "none.txt").write_text("no-such-patient\n")
    with pytest.raises(ManifestError, match="no training image of a patient of st-mary"):
        read_hospital(_site(tmp_path, phantom_64px, data={"root": str(phantom_64px), "patients_file": "none.txt"}))


def test_an_unreadable_image_is_refused_or_skipped_and_counted_as_the_site_file_says(phantom_64px, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(phantom_64px, root)
    broken = sorted(set((root / "train_val_list.txt").read_text().split()))[0]
    (root / "images" / broken).write_bytes(b"no picture")
    refusing = read_hospital(_site(tmp_path / "r", root))
    with pytest.raises(ManifestError, match=broken):
        read_training_data(refusing, 32, 0.3)
    skipping = read_hospital(_site(tmp_path / "s", root, data={"root": str(root), "on_unreadable": "skip"}))
    data = read_training_data(skipping, 32, 0.3)
    assert len(data.loaded.skipped) == 1
    assert broken in data.loaded.skipped[0]
    assert data.train_rows.size + data.validation_rows.size == len(skipping.manifest) - 1
    assert np.isin(broken, data.loaded.manifest.table["image"]) == np.False_


def test_plain_flwr_run_refuses_a_partition_that_it_cannot_make(phantom_64px, tmp_path):
    config = yaml.safe_load((PROJECT / "configs" / "flwr_run.yaml").read_text())
    config |= {"data": {"root": str(phantom_64px)}, "partition": {"by": "labels", "num_hospitals": 2, "alpha": 1}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(FederationError, match=r"partition\.by is 'labels'"):
        hospital_of({"partition-id": 0, "num-partitions": 2}, {"config": str(tmp_path / "run.yaml")})


def test_a_table_by_its_own_path_keeps_the_lists_beside_it(phantom_64px, tmp_path):
    table = next(phantom_64px.glob("Data_Entry*.csv"))
    by_table, by_folder = (
        read_hospital(_site(tmp_path / name, root)) for name, root in (("t", table), ("f", phantom_64px))
    )
    assert by_table.manifest.table.equals(by_folder.manifest.table)


def test_images_decoded_for_another_size_or_split_are_forgotten(phantom_64px, tmp_path, monkeypatch):
    hospital = read_hospital(_site(tmp_path, phantom_64px))
    forgotten = weakref.ref(read_training_data(hospital, 32, 0.3))
    decode, alive = site_module.load_images, []

    def load_images(*arguments, **more):
        gc.collect()
        alive.append(forgotten())
        return decode(*arguments, **more)

    monkeypatch.setattr(site_module, "load_images", load_images)
    read_training_data(hospital, 64, 0.3)
    assert alive == [None]


def test_a_patient_who_withdraws_is_gone_with_the_next_message(phantom_64px, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(phantom_64px, root)
    site = _site(tmp_path, root)
    before = read_hospital(site)
    data = read_training_data(before, 32, 0.3)
    assert read_hospital(site) is before
    assert read_training_data(before, 32, 0.3) is data
    withdrawn = before.manifest.patients[0]
    (root / "excluded_patients.txt").write_text(withdrawn)
    after = read_hospital(site)
    assert set(after.manifest.patients) == set(before.manifest.patients) - {withdrawn}
    assert withdrawn not in set(read_training_data(after, 32, 0.3).loaded.manifest.table["patient"])
    forgotten = weakref.ref(data)
    del before, data
    gc.collect()
    assert forgotten() is None


def test_a_hospital_with_a_scanner_of_its_own_sees_its_images_shifted_and_nothing_else_changes(phantom_64px, tmp_path):
    plain = read_training_data(read_hospital(_site(tmp_path / "plain", phantom_64px)), 32, 0.3)
    scanner = {"gamma": 1.2, "noise_std": 0.02, "noise_seed": 3, "border_fraction": 0.1}
    site = _site(tmp_path / "shifted", phantom_64px, data={"root": str(phantom_64px), "scanner": scanner})
    data = read_training_data(read_hospital(site), 32, 0.3)
    assert np.array_equal(data.train_rows, plain.train_rows)
    rows = data.train_rows[:4]
    before, after = plain.loaded.images.read(rows)[:, 0].numpy(), data.loaded.images.read(rows)[:, 0].numpy()
    names = data.loaded.manifest.table["image"]
    for row, one, other in zip(rows, before, after, strict=True):
        assert np.array_equal(shifted(one, ScannerConfig(**scanner), name=names[row]), other)
    assert not after[:, :3].any()
