"""Local training: it learns, it repeats, it keeps its hands off the rest of the process."""

import numpy as np
import pytest
import torch

from aecnn.config import DatasetConfig, ImagesConfig, ModelConfig, Plan, TrainingConfig
from aecnn.data.manifest import read_manifest
from aecnn.data.source import load_images
from aecnn.errors import ModelError
from aecnn.evaluation.outputs import run_model
from aecnn.model.joint import build_model
from aecnn.model.weights import weights_of
from aecnn.training.device import resolve_device
from aecnn.training.loop import build_optimizer, train_locally
from federation_in_process import same_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(phantom_64px):
    return load_images(read_manifest(phantom_64px), DatasetConfig(root=phantom_64px), size_px=64)


def _plan(**training):
    return Plan(
        images=ImagesConfig(size_px=64),
        model=ModelConfig(backbone="resnet18"),
        training=TrainingConfig(**({"batch_size": 8, "local_steps": 3, "learning_rate": 1e-3} | training)),
    )


def _train(data, plan, *, seed=1, rows=None):
    model = build_model(plan.model, seed=0, input_size_px=64)
    report = train_locally(model, data, np.arange(24) if rows is None else rows, plan, seed=seed, device=CPU)
    return model, report


def test_training_overfits_a_handful_of_images(data):
    plan = _plan(local_steps=12, batch_size=12)
    model = build_model(plan.model, seed=0, input_size_px=64)
    first, second = (train_locally(model, data, np.arange(12), plan, seed=1, device=CPU) for _ in range(2))
    assert second.bce_sum < 0.6 * first.bce_sum


def test_the_seed_decides_the_weights_and_the_global_random_state_is_left_alone(data):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, _ = _train(data, _plan(), seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    two, _ = _train(data, _plan(), seed=1)
    three, _ = _train(data, _plan(), seed=2)
    assert same_weights(weights_of(one), weights_of(two))
    assert not same_weights(weights_of(one), weights_of(three))


def test_evaluating_in_between_changes_nothing_of_the_training(data):
    plain, _ = _train(data, _plan())
    model = build_model(_plan().model, seed=0, input_size_px=64)
    run_model(model, data, np.arange(10), _plan().images, batch_size=4, device=CPU)
    train_locally(model, data, np.arange(24), _plan(), seed=1, device=CPU)
    assert same_weights(weights_of(plain), weights_of(model))


def test_the_report_counts_what_happened(data):
    model, report = _train(data, _plan(local_steps=None, local_epochs=2), rows=np.arange(17))
    assert (report.num_steps, report.images_seen) == (4, 34)  # 8 + 9 images, twice: the last one joined
    assert int(weights_of(model)["classifier.bn1.num_batches_tracked"]) == 4
    assert 0.5 < report.alive_pixels / report.lit_pixels <= 1.0
    assert 0.1 < report.bce_sum / report.images_seen < 1.5


def test_one_plain_sgd_step_is_the_gradient_of_the_mean_loss(data):
    """Against autograd by hand on the whole batch."""
    from aecnn.data.augmentation import to_input
    from aecnn.model.loss import joint_loss

    plan = Plan(
        images=ImagesConfig(size_px=64, horizontal_flip=False),
        model=ModelConfig(backbone="resnet18"),
        training=TrainingConfig(optimizer="sgd", learning_rate=0.1, weight_decay=0.0, batch_size=6, local_steps=1),
    )
    model, _ = _train(data, plan, rows=np.arange(6))
    reference = build_model(plan.model, seed=0, input_size_px=64).train()
    images = to_input(data.images.read(np.arange(6)), plan.images)
    targets = torch.from_numpy(data.manifest.targets[:6])
    joint_loss(reference(images), images, targets, bce_weight=0.9).total.backward()
    for trained, start in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(trained, start - 0.1 * start.grad, rtol=1e-4, atol=1e-6)


def test_bf16_and_channels_last_train(data):
    for plan in (_plan(precision="bf16"), _plan(channels_last=True)):
        _, report = _train(data, plan)
        assert np.isfinite(report.bce_sum)


def test_a_loss_that_explodes_is_an_error_that_names_the_learning_rate(data):
    with pytest.raises(ModelError, match="learning_rate"):
        _train(data, _plan(optimizer="sgd", learning_rate=100.0, local_steps=12))


def test_parameters_that_are_frozen_are_not_given_to_the_optimiser():
    model = build_model(ModelConfig(backbone="resnet18"), seed=0, input_size_px=64)
    model.encoder.requires_grad_(False)
    optimizer = build_optimizer(model, TrainingConfig(local_steps=1))
    given = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert not given & {id(parameter) for parameter in model.encoder.parameters()}
    assert len(given) == sum(1 for parameter in model.parameters() if parameter.requires_grad)


def test_devices_that_are_not_there_are_refused():
    assert resolve_device("cpu") == CPU
    with pytest.raises(ModelError, match="not one"):
        resolve_device("gpu-please")
    with pytest.raises(ModelError, match="of a kind"):
        resolve_device("meta")
    if not torch.cuda.is_available():
        assert resolve_device("auto") == CPU
        with pytest.raises(ModelError, match="not on this machine"):
            resolve_device("cuda:0")
