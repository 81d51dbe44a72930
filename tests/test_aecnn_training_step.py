"""A batch that does not fit in the GPU's memory goes through in parts, with the same gradient."""

import numpy as np
import pytest
import torch

from aecnn.config import DatasetConfig, ImagesConfig, ModelConfig, Plan, TrainingConfig
from aecnn.data.manifest import read_manifest
from aecnn.data.source import load_images
from aecnn.errors import ModelError
from aecnn.model.joint import build_model
from aecnn.model.weights import weights_of
from aecnn.training.loop import train_locally
from aecnn.training.step import part_sizes
from federation_in_process import same_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(phantom_64px):
    return load_images(read_manifest(phantom_64px), DatasetConfig(root=phantom_64px), size_px=64)


def _plan(normalisation="group", **training):
    return Plan(
        images=ImagesConfig(size_px=64, rotation_deg=5.0),
        model=ModelConfig(backbone="resnet18", normalisation=normalisation),
        training=TrainingConfig(
            **({"optimizer": "sgd", "batch_size": 7, "local_steps": 2, "learning_rate": 0.05} | training)
        ),
    )


class SmallMemory:
    """Lets few images through at a time, and fails late: normalisation has already moved its statistics."""

    def __init__(self, model, most):
        self.most, self.passes = most, []
        model.classifier.fc.register_forward_pre_hook(self._count)

    def _count(self, module, arguments):
        size = len(arguments[0])
        if size > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.passes.append(size)


def _train(data, plan, *, most=10**9, times=1):
    model = build_model(plan.model, seed=0, input_size_px=64)
    memory = SmallMemory(model, most)
    for _ in range(times):
        report = train_locally(model, data, np.arange(14), plan, seed=1, device=CPU)
    return model, memory, report


def test_accumulated_parts_make_the_step_of_the_whole_batch(data):
    data.manifest.targets[2, :9] = np.nan  # known findings differ from image to image
    whole, _, report_of_whole = _train(data, _plan())
    parts, memory, report = _train(data, _plan(), most=3)
    assert memory.passes == [2, 2, 3] * 2
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)
    assert report.num_steps == report_of_whole.num_steps == 2
    assert report.images_seen == report_of_whole.images_seen == 14
    assert report.bce_sum == pytest.approx(report_of_whole.bce_sum, rel=1e-5)
    assert report.mse_sum == pytest.approx(report_of_whole.mse_sum, rel=1e-4)


def test_the_smaller_size_is_kept_for_the_model_so_that_later_trainings_do_not_fail_first(data, caplog):
    _, memory, _ = _train(data, _plan(), most=3, times=2)
    assert sum(memory.passes) == 4 * 7
    assert caplog.text.count("in parts of 3 at most") == 1


def test_a_failed_pass_leaves_no_trace_in_running_statistics_or_draws(data):
    """A batch that fits after a failure gives the bits of one that always went through in such parts."""
    plan = _plan("batch", batch_size=8, optimizer="adam", learning_rate=1e-3)
    failed_first, memory, _ = _train(data, plan, most=4)
    assert memory.passes == [4, 4, 3, 3]
    assert int(failed_first.classifier.bn1.num_batches_tracked) == 4  # two parts a step, none for the failed pass
    model = build_model(plan.model, seed=0, input_size_px=64)
    SmallMemory(model, 4)
    from aecnn.training import step

    step._fitting[model] = 4  # known from the start: nothing fails
    train_locally(model, data, np.arange(14), plan, seed=1, device=CPU)
    assert same_weights(weights_of(model), weights_of(failed_first))


@pytest.mark.parametrize(("normalisation", "most"), [("group", 0), ("batch", 1)])
def test_memory_too_small_for_the_smallest_pass_is_an_error_with_a_remedy(data, normalisation, most):
    with pytest.raises(ModelError, match=r"too small for \d image\(s\) at a time.*larger GPU"):
        _train(data, _plan(normalisation), most=most)


def test_memory_too_small_for_the_optimiser_is_an_error_since_its_step_cannot_be_repeated(data, monkeypatch):
    def full(self, closure=None):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.SGD, "step", full)
    with pytest.raises(ModelError, match="optimiser's state"):
        _train(data, _plan())


@pytest.mark.parametrize(
    ("num_images", "most", "minimum", "sizes"),
    [
        (8, 8, 1, [8]),
        (8, 4, 1, [4, 4]),
        (7, 3, 1, [2, 2, 3]),
        (7, 2, 2, [2, 2, 3]),
        (3, 2, 2, [3]),
        (2, 1, 2, [2]),
        (5, 1, 1, [1] * 5),
    ],
)
def test_parts_are_about_equal_and_never_below_the_minimum(num_images, most, minimum, sizes):
    assert part_sizes(num_images, most, min_batch_size=minimum) == sizes
