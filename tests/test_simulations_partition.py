"""Partition by patient: invariants that no case may break."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aecnn.config import PartitionConfig
from aecnn.data.manifest import Manifest, read_manifest
from aecnn.errors import ManifestError
from simulations.partition import hospital_name, partition_patients


def _manifest(images_per_patient, root=Path("nowhere")):
    patients = [str(p) for p, count in enumerate(images_per_patient) for _ in range(count)]
    table = pd.DataFrame({"image": [f"{i}.png" for i in range(len(patients))], "patient": patients})
    return Manifest(root=root, table=table, targets=np.zeros((len(patients), 14), dtype=np.float32))


counts = st.lists(st.integers(1, 5), min_size=1, max_size=80)


@given(counts, st.integers(1, 8), st.integers(0, 5))
def test_equal_parts_hold_every_patient_once_and_differ_by_at_most_one(images, num_hospitals, seed):
    config = PartitionConfig(by="equal", num_hospitals=num_hospitals)
    if len(images) < num_hospitals:
        with pytest.raises(ManifestError, match="ask for fewer hospitals"):
            partition_patients(_manifest(images), config, seed=seed)
        return
    partition = partition_patients(_manifest(images), config, seed=seed)
    everyone = [patient for own in partition.values() for patient in own]
    assert sorted(everyone) == sorted(str(p) for p in range(len(images)))
    sizes = [len(own) for own in partition.values()]
    assert max(sizes) - min(sizes) <= 1
    assert list(partition) == [hospital_name(i, num_hospitals) for i in range(num_hospitals)]


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), st.integers(0, 5))
def test_given_sizes_are_met_to_one_patient(sizes, seed):
    config = PartitionConfig(by="sizes", sizes=tuple(sizes))
    num_patients = 400
    partition = partition_patients(_manifest([1] * num_patients), config, seed=seed)
    for own, share in zip(partition.values(), np.array(sizes) / sum(sizes), strict=True):
        assert abs(len(own) - share * num_patients) <= 1
    assert len(set().union(*map(set, partition.values()))) == num_patients


def test_the_order_of_rows_does_not_matter_and_the_seed_does():
    manifest = _manifest([2] * 50)
    config = PartitionConfig(by="equal", num_hospitals=3)
    turned = manifest.select(np.arange(len(manifest))[::-1])
    assert partition_patients(manifest, config, seed=1) == partition_patients(turned, config, seed=1)
    assert partition_patients(manifest, config, seed=1) != partition_patients(manifest, config, seed=2)


def test_a_share_too_small_for_a_patient_is_refused():
    with pytest.raises(ManifestError, match="hospital-2 got none"):
        partition_patients(_manifest([1, 1]), PartitionConfig(by="sizes", sizes=(1.0, 0.001)), seed=0)


def test_a_phantoms_own_hospitals_are_kept_and_can_be_made_smaller(phantom_64px):
    manifest = read_manifest(phantom_64px)
    table = pd.read_csv(phantom_64px / "patients.csv", dtype=str)
    expected = {name: set(own["Patient ID"].str.lstrip("0")) for name, own in table.groupby("Hospital")}
    partition = partition_patients(manifest, PartitionConfig(by="manifest"), seed=0)
    assert {name: set(own) for name, own in partition.items()} == expected
    small = partition_patients(manifest, PartitionConfig(by="manifest", max_patients=4), seed=0)
    assert all(len(own) == 4 and set(own) <= expected[name] for name, own in small.items())


def test_a_faulty_file_of_hospitals_is_refused_with_all_faults(tmp_path):
    manifest = _manifest([1, 1, 1, 1], root=tmp_path)
    config = PartitionConfig(by="manifest", file="who.csv")
    with pytest.raises(ManifestError, match="cannot be read"):
        partition_patients(manifest, config, seed=0)
    (tmp_path / "who.csv").write_text("Patient,Hospital\n1,a")
    with pytest.raises(ManifestError, match="no column 'Patient ID'"):
        partition_patients(manifest, config, seed=0)
    (tmp_path / "who.csv").write_text("Patient ID,Hospital\n0,a\n1,a\n1,../b\n2,\n")
    with pytest.raises(ManifestError) as refused:
        partition_patients(manifest, config, seed=0)
    text = str(refused.value)
    assert "patient 1 is in several hospitals: a, ../b" in text
    assert "hospital '../b' cannot be a folder's name" in text
    assert "patient 2 has no hospital" in text
    assert "patient 3 has no hospital" in text
