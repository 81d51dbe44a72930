"""Who is sampled, and the entropy that decides it."""

import numpy as np
import pytest
import torch
from scipy import stats

from aecnn.config import ImagesConfig
from aecnn.data.augmentation import crop_rotated
from aecnn.training.privacy.augmentation import augment_in_secret
from aecnn.training.privacy.entropy import SystemEntropy, gaussian, secret_seed, uniform
from aecnn.training.privacy.sampling import PatientRows, sample_patients
from entropy_of_tests import SeededEntropy

UNLIKELY = 1e-6  # of a test that fails by chance, were its seed another
CPU = torch.device("cpu")


def _hospital(*images):
    """Patients with so many images each; their rows lie mixed up, as in a table."""
    names = np.repeat([f"{patient:05d}" for patient in range(len(images))], images)
    order = np.random.default_rng(0).permutation(names.size)
    return names[order].tolist(), PatientRows.of(names[order].tolist(), np.arange(names.size))


def _steps(patients, count, *, sample_rate, images_per_patient=1, seed=1):
    entropy = SeededEntropy(seed)
    return [
        sample_patients(patients, sample_rate=sample_rate, images_per_patient=images_per_patient, entropy=entropy)
        for _ in range(count)
    ]


def test_each_patients_rows_are_kept_together_and_only_the_given_rows():
    names = ["b", "a", "b", "c", "a", "b"]
    patients = PatientRows.of(names, np.array([0, 2, 4, 5]))
    grouped = [set(patients.rows[patients.starts[p] : patients.starts[p + 1]]) for p in range(len(patients))]
    assert grouped == [{4}, {0, 2, 5}]


def test_every_patient_is_sampled_with_probability_q_whether_with_one_image_or_184():
    names, patients = _hospital(184, 1, 1, 184, 7, 1)
    steps = _steps(patients, 4000, sample_rate=0.05)
    seen = dict.fromkeys(sorted(set(names)), 0)
    for step in steps:
        for own in step:
            seen[names[own[0]]] += 1
    for count in seen.values():
        assert stats.binomtest(count, 4000, 0.05).pvalue > UNLIKELY


def test_patients_are_sampled_independently_so_that_batch_sizes_are_binomial_and_some_are_empty():
    _, patients = _hospital(*[1] * 40)
    sizes = np.array([len(step) for step in _steps(patients, 4000, sample_rate=0.05)])
    expected = stats.binom.pmf(np.arange(7), 40, 0.05)
    observed = np.bincount(np.minimum(sizes, 7), minlength=8)
    test = stats.chisquare(observed, 4000 * np.append(expected, 1.0 - expected.sum()))
    assert test.pvalue > UNLIKELY
    assert observed[0] > 0


def test_a_sample_rate_of_one_takes_everybody_every_time():
    _, patients = _hospital(3, 1, 2)
    assert {len(step) for step in _steps(patients, 50, sample_rate=1.0)} == {3}


def test_a_patients_images_are_drawn_uniformly():
    _, patients = _hospital(5, 3)
    counts = np.zeros(8)
    for step in _steps(patients, 4000, sample_rate=1.0):
        for own in step:
            counts[own] += 1
    for patient in range(2):
        own = patients.rows[patients.starts[patient] : patients.starts[patient + 1]]
        assert counts[own].sum() == 4000
        assert stats.chisquare(counts[own]).pvalue > UNLIKELY


def test_several_images_of_a_patient_are_drawn_without_replacement_each_subset_alike():
    names, patients = _hospital(5, 2)
    subsets = {}
    for step in _steps(patients, 4000, sample_rate=1.0, images_per_patient=3):
        many, few = sorted(step, key=len, reverse=True)
        assert (many.size, np.unique(many).size, np.unique(few).size) == (3, 3, 2)  # all of the patient with fewer
        assert len({names[row] for row in many}) == 1
        subsets[tuple(many)] = subsets.get(tuple(many), 0) + 1
    assert len(subsets) == 10  # of 5 over 3
    assert stats.chisquare(list(subsets.values())).pvalue > UNLIKELY


def test_injected_entropy_repeats_and_the_systems_does_not():
    _, patients = _hospital(*[2] * 60)

    def drawn(entropy):
        steps = [sample_patients(patients, sample_rate=0.3, images_per_patient=1, entropy=entropy) for _ in range(5)]
        return [own.tolist() for step in steps for own in step]

    assert drawn(SeededEntropy(3)) == drawn(SeededEntropy(3))
    assert drawn(SeededEntropy(3)) != drawn(SeededEntropy(4))
    assert drawn(SystemEntropy()) != drawn(SystemEntropy())


@pytest.mark.parametrize("entropy", [SeededEntropy(5), SystemEntropy()], ids=["seeded", "system"])
def test_uniform_draws_are_uniform_and_below_one(entropy):
    draws = uniform(entropy, 100_000)
    assert 0.0 <= draws.min() <= draws.max() < 1.0
    assert stats.kstest(draws, "uniform").pvalue > UNLIKELY


@pytest.mark.parametrize("entropy", [SeededEntropy(6), SystemEntropy()], ids=["seeded", "system"])
def test_noise_is_standard_normal_and_independent_from_draw_to_draw(entropy):
    draws = gaussian(entropy, 200_001, device=CPU)
    assert draws.shape == (200_001,)
    assert draws.dtype == torch.float64
    assert stats.kstest(draws.numpy(), "norm").pvalue > UNLIKELY
    halves = draws[:100_000].numpy(), draws[100_000:200_000].numpy()  # one radius makes two draws
    for one, other in (halves, (halves[0] ** 2, halves[1] ** 2), (halves[0][1:], halves[0][:-1])):
        assert stats.pearsonr(one, other).pvalue > UNLIKELY


def test_no_draw_of_noise_is_infinite_even_of_the_extreme_words():
    class Extreme:
        def bits(self, count):
            return np.resize(np.array([0, 2**64 - 1], dtype=np.uint64), count)

    draws = gaussian(Extreme(), 4, device=CPU)
    assert draws.isfinite().all()
    assert draws.abs().max() < 9.0


def test_pytorchs_generator_on_the_cpu_looks_at_32_bits_of_its_seed():
    """Why neither noise nor augmentation comes from it: its states can be tried one after another."""
    draws = [torch.rand(8, generator=torch.Generator().manual_seed(seed)) for seed in (7, 7 + 2**32, 7 + 2**31)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.fixture
def ramp():
    """An image each of whose pixels has a value of its own in its row and its column, uint8 [1, 1, 24, 24]."""
    return (torch.arange(24)[:, None] * 10 + torch.arange(24)).to(torch.uint8).reshape(1, 1, 24, 24)


def test_secret_crops_and_mirrors_are_uniform_and_each_images_own(ramp):
    config = ImagesConfig(size_px=24, crop_size_px=20, horizontal_flip=True)
    crops = augment_in_secret(ramp.expand(6000, -1, -1, -1), config, SystemEntropy())
    corners = (crops[:, 0, 0, 0] * 255.0).round().int()
    others = (crops[:, 0, 0, -1] * 255.0).round().int()
    is_mirrored = corners > others
    lefts = torch.minimum(corners, others)
    found = torch.stack([lefts // 10, lefts % 10, is_mirrored.int()], dim=1)
    kinds, counts = torch.unique(found, dim=0, return_counts=True)
    assert len(kinds) == 5 * 5 * 2
    assert stats.chisquare(counts.numpy()).pvalue > UNLIKELY
    kind = (found * torch.tensor([10, 2, 1])).sum(dim=1).numpy()
    assert stats.pearsonr(kind[1:], kind[:-1]).pvalue > UNLIKELY


def test_secret_views_are_those_of_the_public_augmentation_for_the_same_draws():
    """Angle, corner and mirror are told by hand from the words, and looked up by the function tested elsewhere."""
    images = (torch.rand(5, 1, 24, 24, generator=torch.Generator().manual_seed(0)) * 255.0).to(torch.uint8)
    config = ImagesConfig(size_px=24, crop_size_px=20, rotation_deg=15.0, horizontal_flip=True)
    found = augment_in_secret(images, config, SeededEntropy(9))
    for image, (row, column, angle, mirror), view in zip(
        images, uniform(SeededEntropy(9), 20).reshape(5, 4), found, strict=True
    ):
        corner = torch.tensor([[int(row * 5), int(column * 5)]])
        turned = torch.tensor([30.0 * angle - 15.0], dtype=torch.float32)
        wanted = crop_rotated(image[None].float() / 255.0, corner, turned, torch.tensor([mirror < 0.5]), 20)
        torch.testing.assert_close(view, wanted[0])
    plain = ImagesConfig(size_px=24, horizontal_flip=False)
    torch.testing.assert_close(augment_in_secret(images, plain, SystemEntropy()), images.float() / 255.0)


def test_seeds_and_words_of_the_system_never_come_twice():
    entropy = SystemEntropy()
    assert len({secret_seed(entropy) for _ in range(1000)}) == 1000
    assert np.unique(entropy.bits(10_000)).size == 10_000
    assert all(0 <= secret_seed(entropy) < 2**63 for _ in range(100))  # what torch takes
