"""Private trainings: what the seed moves and what it does not, failures, and going on after a crash."""

import dataclasses

import numpy as np
import pytest
import torch

from aecnn.config import DatasetConfig, ImagesConfig, ModelConfig, Plan, TrainingConfig
from aecnn.data.manifest import read_manifest
from aecnn.data.source import load_images
from aecnn.errors import CacheError, ManifestError, PrivacyError
from aecnn.model.weights import weights_of
from aecnn.training.loop import train_locally
from aecnn.training.resume import LocalCheckpoint
from entropy_of_tests import SeededEntropy
from federation_in_process import same_weights
from private_steps_of_tests import (
    CPU,
    SIZE_PX,
    a_promise,
)
from small_model_of_tests import small_model


@pytest.fixture(scope="module")
def data(phantom_64px):
    return load_images(read_manifest(phantom_64px), DatasetConfig(root=phantom_64px), size_px=SIZE_PX)


def _one_image_a_patient(data):
    return np.unique(data.manifest.table["patient"].to_numpy(dtype=str), return_index=True)[1].astype(np.intp)[:12]


def _plan(promise=None, **training):
    return Plan(
        images=ImagesConfig(size_px=SIZE_PX, horizontal_flip=promise is not None and promise.noise_multiplier > 0.1),
        model=ModelConfig(backbone="resnet18", normalisation="group"),
        training=TrainingConfig(
            **(
                {"optimizer": "sgd", "learning_rate": 0.01, "batch_size": 12, "local_steps": 3}
                | {"privacy": None if promise is None else promise.config}
                | training
            )
        ),
    )


def _train(data, promise, *, entropy=None, seed=1, checkpoint=None, on_step=None, **training):
    model = small_model()
    report = train_locally(
        model,
        data,
        _one_image_a_patient(data),
        _plan(promise, **training),
        seed=seed,
        device=CPU,
        promise=promise,
        entropy=entropy,
        checkpoint=checkpoint,
        on_step=on_step,
    )
    return weights_of(model), report


@pytest.mark.parametrize("gradients", ["loop", "hooks"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_without_noise_and_clip_every_patient_in_every_step_is_training_without_privacy(data, gradients, optimizer):
    """ε → ∞: σ → 0, C large, q = 1, one image a patient; the declared number is the true one."""
    promise = a_promise(sigma=1e-12, clip=1e3, sample_rate=1.0, patients=12, steps=3, gradients=gradients)
    private, _ = _train(data, promise, optimizer=optimizer, batch_size=5)
    plain, _ = _train(data, None, optimizer=optimizer)
    start = weights_of(small_model())
    for name, weights in plain.items():
        # Adam's step is its learning rate times a sign, even where a gradient is next to nothing.
        tolerance = 2e-6 if optimizer == "sgd" else 1e-3
        np.testing.assert_allclose(private[name], weights, rtol=1e-4, atol=tolerance)
    assert max(float(np.abs(plain[name] - start[name]).max()) for name in start) > 1e-3


def test_two_runs_of_one_seed_differ_under_privacy_and_agree_without(data):
    promise = a_promise(steps=3)
    assert not same_weights(_train(data, promise)[0], _train(data, promise)[0])
    assert same_weights(_train(data, None)[0], _train(data, None)[0])


def test_two_runs_of_the_same_injected_entropy_agree_whatever_the_seed(data):
    promise = a_promise(steps=3)
    one, report = _train(data, promise, entropy=SeededEntropy(1), seed=1)
    two, _ = _train(data, promise, entropy=SeededEntropy(1), seed=2)
    other, _ = _train(data, promise, entropy=SeededEntropy(2), seed=1)
    assert same_weights(one, two)
    assert not same_weights(one, other)
    assert (report.num_steps, report.bce_sum, report.mse_sum, report.lit_pixels) == (3, None, None, None)


def test_nothing_of_a_private_training_is_drawn_from_a_generator_that_the_seed_or_a_patient_moves(data, monkeypatch):
    """The centre knows the seed; and a generator that patients share is shifted by one more of them."""
    model = small_model()

    def refuse(*_, **__):
        raise AssertionError("a draw from a generator of PyTorch's")

    for name in ("rand", "randn", "randint", "randperm"):
        monkeypatch.setattr(torch, name, refuse)
    promise, rows = a_promise(steps=3, sample_rate=1.0), _one_image_a_patient(data)
    train_locally(model, data, rows, _plan(promise), seed=1, device=CPU, promise=promise)
    with pytest.raises(AssertionError, match="generator"):
        train_locally(model, data, rows, _plan(), seed=1, device=CPU)


class _FailingImages:
    """Images that cannot be read."""

    def __init__(self, images, error):
        self._error, self.size_px = error, images.size_px

    def read(self, rows, *, out=None):
        raise self._error


@pytest.mark.parametrize("gradients", ["loop", "hooks"])
@pytest.mark.parametrize(
    "error",
    [CacheError("a part is damaged"), ManifestError("x", ["gone"]), torch.OutOfMemoryError("full"), OSError(5, "disk")],
    ids=lambda error: type(error).__name__,
)
def test_every_failure_of_a_private_step_is_the_same_to_the_centre(error, gradients, data):
    """Which code is answered follows from the kind of error, and which error there is could tell who was drawn."""
    broken = dataclasses.replace(data, images=_FailingImages(data.images, error))
    promise = a_promise(sample_rate=1.0, gradients=gradients)
    with pytest.raises(PrivacyError, match="the private training failed") as caught:
        train_locally(small_model(), broken, np.arange(4), _plan(promise), seed=1, device=CPU, promise=promise)
    assert type(caught.value) is PrivacyError


def test_privacy_without_a_promise_and_a_promise_without_privacy_are_refused(data):
    with pytest.raises(PrivacyError, match="promise"):
        train_locally(small_model(), data, np.arange(4), _plan(a_promise()), seed=1, device=CPU)
    with pytest.raises(PrivacyError, match="promise"):
        train_locally(small_model(), data, np.arange(4), _plan(), seed=1, device=CPU, promise=a_promise())


def test_a_private_training_cut_short_goes_on_to_its_number_of_steps(data, tmp_path):
    class PowerCutError(Exception):
        pass

    promise, steps = a_promise(steps=5), []
    checkpoint = LocalCheckpoint(tmp_path / "c.safetensors", key="r1", interval_s=0.0)

    def cut(done, total):
        steps.append((done, total))
        if done == 2:
            raise PowerCutError

    for optimizer in ("sgd", "adam"):
        steps.clear()
        checkpoint.path.unlink(missing_ok=True)
        with pytest.raises(PowerCutError):
            _train(data, promise, checkpoint=checkpoint, on_step=cut, optimizer=optimizer)
        _, report = _train(
            data, promise, checkpoint=checkpoint, on_step=lambda *at: steps.append(at), optimizer=optimizer
        )
        assert steps == [(done, 5) for done in (1, 2, 3, 4, 5)]
        assert report.num_steps == 5


def test_noise_from_a_checkpoint_on_is_new(data, tmp_path):
    """Otherwise an interrupted round and its repetition would share their noise, and their difference have none."""
    promise, ends = a_promise(steps=2), []
    for attempt in range(2):
        checkpoint = LocalCheckpoint(tmp_path / f"{attempt}.safetensors", key="r1", interval_s=0.0)
        ends.append(_train(data, dataclasses.replace(promise), checkpoint=checkpoint)[0])
    assert not same_weights(*ends)
