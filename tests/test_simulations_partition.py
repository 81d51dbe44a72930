"""Partition by patient: invariants that no case may break, and what α does."""

import hashlib
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aecnn.config import PartitionConfig
from aecnn.data.manifest import Manifest, read_manifest, read_split
from aecnn.errors import ManifestError
from aecnn.findings import FINDINGS
from simulations.case_mix import patients_by_trait
from simulations.partition import hospital_name, partition_patients
from simulations.patients_file import content_hash, patients_csv
from simulations.shares import dirichlet_shares, equal_size_shares, lognormal_shares, whole_patients

HERNIA, MASS, INFILTRATION = (FINDINGS.index(name) for name in ("Hernia", "Mass", "Infiltration"))


def _manifest(images_per_patient, root=Path("nowhere")):
    patients = [str(p) for p, count in enumerate(images_per_patient) for _ in range(count)]
    table = pd.DataFrame({"image": [f"{i}.png" for i in range(len(patients))], "patient": patients})
    return Manifest(root=root, table=table, targets=np.zeros((len(patients), 14), dtype=np.float32))


def _varied_manifest(images_per_patient, *, seed=0, root=Path("nowhere")):
    """Patients with ages, sexes, views and findings, of which some are unknown."""
    random = np.random.default_rng(seed)
    manifest = _manifest(images_per_patient, root)
    count = len(manifest)
    manifest.table["age_years"] = np.where(random.random(count) < 0.1, np.nan, random.uniform(0, 95, count))
    manifest.table["sex"] = pd.Series(random.choice(["F", "M", ""], count)).replace("", None)
    manifest.table["view"] = pd.Series(random.choice(["PA", "PA", "AP", ""], count)).replace("", None)
    rare_to_common = np.linspace(0.02, 0.3, 14)
    manifest.targets[:] = random.random((count, 14)) < rare_to_common[::-1]
    manifest.targets[random.random(count) < 0.05] = np.nan
    return manifest


RANDOM_KINDS = [
    {"by": "equal"},
    {"by": "sizes", "sigma": 0.5},
    {"by": "labels", "alpha": 1.0},
    {"by": "view", "alpha": 0.3},
    {"by": "age", "alpha": 0.3},
    {"by": "sex", "alpha": 0.3},
    {"by": "scanner"},
]
by_kind = pytest.mark.parametrize("kind", RANDOM_KINDS, ids=lambda kind: kind["by"])
counts = st.lists(st.integers(1, 5), min_size=1, max_size=80)


@by_kind
@settings(max_examples=40, deadline=None)
@given(
    images=st.lists(st.integers(1, 5), min_size=20, max_size=80),
    num_hospitals=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_every_patient_is_in_exactly_one_hospital_and_none_is_empty(kind, images, num_hospitals, seed):
    manifest = _varied_manifest(images, seed=seed)
    partition = partition_patients(manifest, PartitionConfig(num_hospitals=num_hospitals, **kind), seed=seed)
    assert sorted(patient for own in partition.values() for patient in own) == list(manifest.patients)
    assert min(map(len, partition.values())) >= 1
    assert list(partition) == [hospital_name(i, num_hospitals) for i in range(num_hospitals)]
    assert all(own == sorted(own) for own in partition.values())


@by_kind
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), order=st.randoms(use_true_random=False))
def test_the_seed_decides_and_the_order_of_rows_does_not(kind, seed, order):
    manifest = _varied_manifest([2, 1, 3] * 30)
    config = PartitionConfig(num_hospitals=3, **kind)
    rows = list(range(len(manifest)))
    order.shuffle(rows)
    partition = partition_patients(manifest, config, seed=seed)
    again = partition_patients(manifest.select(rows), config, seed=seed)
    assert again == partition
    assert content_hash(again, manifest.patients) == content_hash(partition, manifest.patients)
    other = partition_patients(manifest, config, seed=seed + 1)
    assert content_hash(other, manifest.patients) != content_hash(partition, manifest.patients)


@given(counts, st.integers(1, 8), st.integers(0, 5))
def test_equal_parts_differ_by_at_most_one_patient(images, num_hospitals, seed):
    config = PartitionConfig(by="equal", num_hospitals=num_hospitals)
    if len(images) < num_hospitals:
        with pytest.raises(ManifestError, match="ask for fewer hospitals"):
            partition_patients(_manifest(images), config, seed=seed)
        return
    sizes = [len(own) for own in partition_patients(_manifest(images), config, seed=seed).values()]
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), st.integers(0, 5))
def test_given_sizes_are_met_to_one_patient(sizes, seed):
    config = PartitionConfig(by="sizes", sizes=tuple(sizes))
    num_patients = 400
    partition = partition_patients(_manifest([1] * num_patients), config, seed=seed)
    for own, share in zip(partition.values(), np.array(sizes) / sum(sizes), strict=True):
        assert abs(len(own) - share * num_patients) <= 1


def test_log_normal_sizes_have_the_spread_asked_for():
    drawn = np.log([lognormal_shares(50, sigma=0.8, random=np.random.default_rng(seed)) for seed in range(200)])
    assert np.std(drawn, axis=1, ddof=1).mean() == pytest.approx(0.8, rel=0.02)
    assert np.exp(drawn).sum(axis=1) == pytest.approx(np.ones(200))
    sizes = [len(own) for own in _partition("sizes", sigma=0.0, num_hospitals=4).values()]
    assert max(sizes) - min(sizes) <= 1


def test_dirichlet_shares_have_the_moments_of_the_closed_form():
    alpha, num_hospitals = 0.7, 5
    draws = [
        dirichlet_shares(np.ones(20), num_hospitals, alpha=alpha, random=np.random.default_rng(seed))
        for seed in range(500)
    ]
    shares = np.concatenate(draws)
    mean = 1 / num_hospitals
    variance = mean * (1 - mean) / (num_hospitals * alpha + 1)
    assert shares.sum(axis=1) == pytest.approx(np.ones(len(shares)))
    assert shares.mean(axis=0) == pytest.approx(np.full(num_hospitals, mean), abs=0.01)
    assert shares.var(axis=0) == pytest.approx(np.full(num_hospitals, variance), rel=0.06)


def test_even_the_smallest_alpha_gives_finite_shares():
    for draw in (dirichlet_shares, equal_size_shares):
        shares = draw(np.array([5, 9]), 40, alpha=0.01, random=np.random.default_rng(0))
        assert shares.sum(axis=1) == pytest.approx(np.ones(2))


def test_whole_patients_add_up_and_are_right_on_average():
    shares = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    groups = np.array([1, 7])
    draws = np.array([whole_patients(shares, groups, np.random.default_rng(seed)) for seed in range(4000)])
    assert (draws.sum(axis=2) == groups).all()
    assert (np.abs(draws - shares * groups[:, np.newaxis]) < 1).all()
    assert draws.mean(axis=0) == pytest.approx(shares * groups[:, np.newaxis], abs=0.03)


def _partition(by, *, seed=0, num_patients=3000, **settings_):
    return partition_patients(_varied_manifest([1] * num_patients), PartitionConfig(by=by, **settings_), seed=seed)


def _mixes(partition, trait, num_patients=3000):
    """[hospitals, groups] shares of each hospital's patients."""
    groups = patients_by_trait(_varied_manifest([1] * num_patients), trait)
    return np.array([groups.loc[own].value_counts(sort=False, normalize=True) for own in partition.values()])


@pytest.mark.parametrize("trait", ["labels", "view", "age", "sex"])
def test_a_large_alpha_gives_every_hospital_the_mix_and_size_of_all(trait):
    partition = _partition(trait, alpha=1e6, num_hospitals=5)
    groups = patients_by_trait(_varied_manifest([1] * 3000), trait)
    overall = groups.value_counts(sort=False, normalize=True).to_numpy()
    assert np.abs(_mixes(partition, trait) - overall).max() < 0.005
    assert [len(own) for own in partition.values()] == pytest.approx([600] * 5, abs=16)


@pytest.mark.parametrize("trait", ["view", "age", "sex"])
def test_a_small_alpha_gives_equally_large_hospitals_almost_one_group_each(trait):
    num_groups = len(patients_by_trait(_varied_manifest([1] * 3000), trait).cat.categories)
    largest = {}
    for alpha in (0.03, 1.0, 1e4):
        drawn = [_partition(trait, alpha=alpha, num_hospitals=8, seed=seed) for seed in range(5)]
        for partition in drawn:
            assert [len(own) for own in partition.values()] == pytest.approx([375] * 8, abs=num_groups + 1)
        largest[alpha] = np.mean([_mixes(partition, trait).max(axis=1).mean() for partition in drawn])
    assert largest[0.03] > 0.7  # not 1: groups are not multiples of hospitals
    assert largest[0.03] > largest[1.0] + 0.1 > largest[1e4] + 0.15


def test_a_small_alpha_puts_each_findings_patients_into_almost_one_hospital():
    groups = patients_by_trait(_varied_manifest([1] * 3000), "labels")
    concentration = {}
    for alpha in (0.05, 1.0, 1e4):
        at_most = []
        for seed in range(5):
            partition = _partition("labels", alpha=alpha, num_hospitals=4, seed=seed)
            counts = np.array([groups.loc[own].value_counts(sort=False) for own in partition.values()])
            at_most.append((counts.max(axis=0) / counts.sum(axis=0)).mean())
        concentration[alpha] = np.mean(at_most)
    assert concentration[0.05] > 0.85
    assert 0.4 < concentration[1.0] < 0.7  # the largest of four Dirichlet(1) shares: (1 + 1/2 + 1/3 + 1/4) / 4 = 0.52
    assert concentration[1e4] < 0.3


def test_hospitals_have_the_patients_asked_for_or_the_draw_is_refused():
    partition = _partition("labels", alpha=0.2, num_hospitals=6, min_patients=150)
    assert min(map(len, partition.values())) >= 150
    with pytest.raises(ManifestError, match=r"1000 draws by labels never gave each of 30 hospitals min_patients 60"):
        _partition("labels", alpha=0.05, num_hospitals=30, min_patients=60)
    with pytest.raises(ManifestError, match="3000 patients for 6 hospitals of at least 501 patients: ask for fewer"):
        _partition("view", alpha=1.0, num_hospitals=6, min_patients=501)
    with pytest.raises(ManifestError, match="hospital-2 got 30 of at least 31"):
        _partition("sizes", sizes=(99, 1), min_patients=31)


def test_a_share_too_small_for_a_patient_is_refused():
    with pytest.raises(ManifestError, match="hospital-2 got none"):
        partition_patients(_manifest([1, 1]), PartitionConfig(by="sizes", sizes=(1.0, 0.001)), seed=0)


def test_hospitals_cannot_differ_by_what_nobody_knows():
    manifest = _varied_manifest([1] * 20)
    manifest.table["view"] = None
    with pytest.raises(ManifestError, match="all 20 patients are 'unknown', so hospitals cannot differ by view"):
        partition_patients(manifest, PartitionConfig(by="view", num_hospitals=2, alpha=1.0), seed=0)


def test_scanners_are_shared_out_as_by_equal_so_that_only_the_scanner_differs():
    assert _partition("scanner", num_hospitals=3) == _partition("equal", num_hospitals=3)


def test_a_patients_group_is_the_rarest_finding_the_commonest_view_and_the_median_age():
    table = pd.DataFrame(
        {
            "patient": ["a", "a", "a", "b", "b", "c", "d", "e"],
            "view": ["PA", "AP", "PA", "PA", "AP", None, "AP", "PA"],
            "age_years": [17.9, 18.0, 80.0, np.nan, 80.0, np.nan, 0.0, 17.9],
            "sex": ["F", "F", "M", None, "M", None, "F", "M"],
        }
    )
    targets = np.zeros((8, 14), dtype=np.float32)
    targets[1, [HERNIA, MASS]] = 1
    targets[3, [MASS, INFILTRATION]] = 1
    targets[6, INFILTRATION] = 1
    targets[7, MASS] = 1
    targets[5] = np.nan
    manifest = Manifest(root=Path("x"), table=table, targets=targets)
    assert patients_by_trait(manifest, "labels").tolist() == [
        "Hernia", "Infiltration", "Not labelled", "Infiltration", "Mass",
    ]  # fmt: skip
    targets[7] = 0
    assert patients_by_trait(manifest, "labels").tolist()[4] == "No Finding"
    assert patients_by_trait(manifest, "view").tolist() == ["PA", "AP", "unknown", "AP", "PA"]
    assert patients_by_trait(manifest, "age").tolist() == ["18-39", "80+", "unknown", "0-17", "0-17"]
    assert patients_by_trait(manifest, "sex").tolist() == ["F", "M", "unknown", "F", "M"]


@by_kind
@pytest.mark.parametrize("max_patients", [None, 5])
def test_a_partition_read_back_from_its_file_is_the_same_with_the_same_hash(kind, max_patients, tmp_path):
    manifest = _varied_manifest([1, 2] * 40, root=tmp_path)
    partition = partition_patients(
        manifest, PartitionConfig(num_hospitals=3, max_patients=max_patients, **kind), seed=4
    )
    if max_patients:
        assert max(map(len, partition.values())) <= max_patients
    text = patients_csv(partition, manifest.patients)
    (tmp_path / "patients.csv").write_text(text, encoding="utf-8")
    again = partition_patients(manifest, PartitionConfig(by="manifest"), seed=9)
    assert again == partition
    assert content_hash(again, manifest.patients) == hashlib.sha256(text.encode()).hexdigest()


def test_the_hash_of_a_known_partition_never_changes():
    partition = {"b": ["10", "é,x"], "a": ["9"]}
    text = 'Patient ID,Hospital\n10,b\n7,-\n9,a\n"é,x",b\n'
    assert patients_csv(partition, ["9", "é,x", "7", "10"]) == text
    assert content_hash(partition, ["9", "é,x", "7", "10"]) == hashlib.sha256(text.encode()).hexdigest()
    assert content_hash(dict(reversed(partition.items())), ["7", "9", "10", "é,x"]) == content_hash(
        partition, ["9", "é,x", "7", "10"]
    )


@by_kind
def test_patients_who_are_not_in_the_dataset_never_appear(kind):
    manifest = _varied_manifest([2] * 60)
    gone = {"3", "17", "59"}
    without = manifest.select(~manifest.table["patient"].isin(gone).to_numpy())
    partition = partition_patients(without, PartitionConfig(num_hospitals=3, **kind), seed=0)
    assert set().union(*partition.values()) == set(manifest.patients) - gone
    assert not any(f"\n{patient}," in patients_csv(partition, without.patients) for patient in gone)


def test_a_withdrawn_patient_named_in_the_file_of_hospitals_never_appears(phantom_64px, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(phantom_64px, root)
    gone = read_manifest(root).patients[0]
    (root / "excluded_patients.txt").write_text(f"{gone}\n")
    manifest = read_split(root, "all", require_images=False)
    partition = partition_patients(manifest, PartitionConfig(by="manifest"), seed=0)
    assert gone not in set().union(*partition.values())
    assert set().union(*partition.values()) == set(manifest.patients)


def test_a_dataset_whose_lists_share_a_patient_is_refused_before_it_is_shared_out(phantom_64px, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(phantom_64px, root)
    table = read_manifest(root).table
    trains = table[table["split"] == "train_val"]
    patient = trains["patient"].value_counts().index[0]
    image = trains["image"][trains["patient"] == patient].iloc[0]
    names = (root / "train_val_list.txt").read_text().split()
    (root / "train_val_list.txt").write_text("\n".join(name for name in names if name != image))
    with (root / "test_list.txt").open("a") as listed:
        listed.write(f"\n{image}")
    with pytest.raises(ManifestError, match="1 patient has images in both"):
        read_manifest(root, require_images=False)


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
    (tmp_path / "who.csv").write_text("Patient ID,Hospital\n0,a\n1,a\n1,../b\n2,\n5\n")
    with pytest.raises(ManifestError) as refused:
        partition_patients(manifest, config, seed=0)
    text = str(refused.value)
    assert "patient '1' is in several hospitals: a, ../b" in text
    assert "hospital '../b' cannot be a folder's name" in text
    assert "patient '2' has no hospital" in text
    assert "patient '3' has no hospital" in text
    assert "row 6: has 1 fields" in text
    (tmp_path / "who.csv").write_text("Patient ID,Hospital\n0,-\n1,-\n2,-\n3,-\n")
    with pytest.raises(ManifestError, match="puts none of the dataset's 4 patients into a hospital"):
        partition_patients(manifest, config, seed=0)


@pytest.mark.slow
def test_the_full_real_table_is_shared_out_by_every_kind_without_losing_anyone(real_data):
    manifest = read_split(real_data / "nih_metadata", "train_val", require_images=False)
    test_patients = set(read_split(real_data / "nih_metadata", "test", require_images=False).patients)
    for kind in RANDOM_KINDS:
        partition = partition_patients(manifest, PartitionConfig(num_hospitals=10, **kind), seed=0)
        everyone = [patient for own in partition.values() for patient in own]
        assert len(everyone) == len(set(everyone)) == 28_008
        assert not test_patients & set(everyone)
    groups = patients_by_trait(manifest, "labels").value_counts()
    assert groups["Hernia"] == len(set(manifest.table["patient"][manifest.targets[:, HERNIA] == 1]))
    assert math.isclose(groups.sum(), 28_008)
