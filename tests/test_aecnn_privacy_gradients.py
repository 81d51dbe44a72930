"""Patients' gradients and their clipping, each against a slow and obvious reference."""

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from torch import nn

from aecnn.config import ModelConfig
from aecnn.model.joint import build_architecture, build_model
from aecnn.model.loss import joint_loss_per_image
from aecnn.training.privacy.gradients import Images, hook_gradients, loop_gradients, trained
from aecnn.training.privacy.step import add_clipped, zero_sums
from entropy_of_tests import SeededEntropy
from private_steps_of_tests import (
    SIZE_PX,
    a_promise,
    a_step,
    a_training,
    assert_all_close,
    parameters_of,
    random_images,
    reader_of_random_images,
    released_sum,
    rows_of,
)
from small_model_of_tests import small_model


def _by_hand(model, batch, training):
    """The gradient of each patient's mean loss: `backward` into `.grad`, one image at a time."""
    rows, start = [], 0
    for count in batch.counts:
        model.zero_grad()
        for row in range(start, start + count):
            image, target = batch.images[row : row + 1], batch.targets[row : row + 1]
            loss = joint_loss_per_image(model(image), image, target, bce_weight=training.bce_weight)
            (loss.total.sum() / count).backward()
        rows.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trained(model)])
        start += count
    model.zero_grad()
    return [torch.stack(own) for own in zip(*rows, strict=True)]


def _alone(model, batch, training):
    """Every patient's gradient from the loop, [P, …]."""
    patients, start = [], 0
    for count in batch.counts:
        rows = range(start, start + count)
        images = [(batch.images[row : row + 1], batch.targets[row : row + 1]) for row in rows]
        room = [torch.full_like(parameter, torch.nan, requires_grad=False) for parameter in trained(model)]
        patients.append(loop_gradients(model, images, training, count=count, room=room))
        start += count
    return [torch.cat(own) for own in zip(*patients, strict=True)]


def _frozen():
    model = build_architecture(
        ModelConfig(backbone="resnet18", normalisation="frozen", weights="imagenet"), input_size_px=SIZE_PX
    )
    for name, buffer in model.named_buffers():  # as after a pretraining elsewhere
        if "running" in name:
            buffer.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    return model


_MODELS = {
    "small": small_model,
    "resnet18-group": lambda: build_model(
        ModelConfig(backbone="resnet18", normalisation="group"), seed=0, input_size_px=SIZE_PX
    ),
    "resnet18-frozen": _frozen,
}
_LARGE = {
    "densenet121-group": ("densenet121", 128),
    "inception-v3-group": ("inception_v3", 64),
}


def _assert_ways_agree(model, batch, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the loss is single precision on purpose: not here
    training = a_training()
    one_by_one, at_once = _alone(model, batch, training), hook_gradients(model, batch, training)
    assert_all_close(at_once, one_by_one, rtol=1e-9, atol=1e-9)
    return one_by_one


@pytest.mark.parametrize("name", _MODELS)
def test_hooks_loop_and_autograd_by_hand_give_the_same_gradients(name, monkeypatch):
    model = _MODELS[name]().double().train()
    images, targets = random_images(4)
    batch = Images(images.double(), targets.double(), counts=[1, 2, 1])  # one patient has two: their mean
    found = _assert_ways_agree(model, batch, monkeypatch)
    assert_all_close(found, _by_hand(model, batch, a_training()), rtol=1e-9, atol=1e-9)
    assert max(float(gradient.abs().max()) for gradient in found) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", _LARGE)
def test_hooks_and_loop_agree_for_networks_with_dense_sums_and_an_auxiliary_head(name, monkeypatch):
    backbone, size_px = _LARGE[name]
    config = ModelConfig(backbone=backbone, normalisation="group")
    model = build_model(config, seed=0, input_size_px=size_px).double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # one mask for a batch is another than one an image
    images, targets = random_images(2, size_px=size_px)
    batch = Images(images.double(), targets.double(), counts=[1, 1])
    found = dict(
        zip([n for n, _ in model.named_parameters()], _assert_ways_agree(model, batch, monkeypatch), strict=True)
    )
    if backbone == "inception_v3":
        assert float(found["classifier.AuxLogits.fc.weight"].abs().max()) > 0.0


def test_unknown_findings_and_bf16_go_through_both_ways():
    model = small_model()
    images, targets = random_images(3)
    targets[0] = torch.nan
    targets[1, :5] = torch.nan
    for precision, tolerance in (("fp32", 1e-4), ("bf16", 0.1)):
        batch, training = Images(images, targets, [1, 1, 1]), a_training(precision=precision)
        one_by_one = _alone(model, batch, training)
        at_once = [gradient.float() for gradient in hook_gradients(model, batch, training)]
        scale = max(float(gradient.abs().max()) for gradient in one_by_one)
        assert_all_close(at_once, one_by_one, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("gradients", ["loop", "hooks"])
def test_a_model_is_left_without_hooks_and_attributes(gradients):
    model = _MODELS["resnet18-group"]().train()
    before = [{name: repr(value) for name, value in vars(module).items()} for module in model.modules()]
    a_step(model, promise=a_promise(gradients=gradients)).take(rows_of([0], [1, 2]), reader_of_random_images(3))
    assert [set(vars(module)) for module in model.modules()] == [set(own) for own in before]
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert not any(vars(parameter) or parameter.grad is not None for parameter in model.parameters())
    model(random_images(1)[0])


def test_a_failure_in_the_middle_leaves_no_hooks_and_the_next_gradients_are_right():
    model = small_model()
    images, targets = random_images(2)
    batch = Images(images, targets, [1, 1])
    wanted = hook_gradients(model, batch, a_training())

    def fail(module, inputs, output):
        raise torch.OutOfMemoryError

    handle = model.classifier[4].register_forward_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        hook_gradients(model, batch, a_training())
    handle.remove()
    assert not any(module._forward_hooks or vars(module).get("activations") for module in model.modules())
    again = hook_gradients(model, batch, a_training())
    assert_all_close(again, wanted, rtol=0.0, atol=0.0)


# --- the clip


def _norms(gradients):
    return torch.sqrt(sum(gradient.reshape(len(gradient), -1).double().square().sum(dim=1) for gradient in gradients))


def test_all_parameters_of_a_patient_are_clipped_together():
    random = torch.Generator().manual_seed(0)
    gradients = [torch.randn(6, 4, 3, generator=random), torch.randn(6, 5, generator=random)]
    gradients = [
        gradient * torch.tensor([0.01, 0.1, 1.0, 10.0, 1e15, 0.0]).reshape(-1, *[1] * (gradient.dim() - 1))
        for gradient in gradients
    ]
    total = zero_sums([torch.zeros(4, 3), torch.zeros(5)])
    add_clipped(total, gradients, max_grad_norm=1.0)
    scales = (1.0 / _norms(gradients)).clamp(max=1.0)
    wanted = [sum(scales[p] * gradient[p].double() for p in range(5)) for gradient in gradients]
    assert_all_close(total, wanted, rtol=2e-4)


def test_the_clip_agrees_with_opacus_optimiser():
    random = torch.Generator().manual_seed(0)
    gradients = [torch.randn(7, 30, 20, generator=random), torch.randn(7, 50, generator=random)]
    parameters = [nn.Parameter(torch.zeros(30, 20)), nn.Parameter(torch.zeros(50))]
    oracle = DPOptimizer(
        torch.optim.SGD(parameters, lr=1.0), noise_multiplier=0.0, max_grad_norm=3.0, expected_batch_size=5
    )
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad_sample = gradient
    oracle.step()
    total = zero_sums(parameters)
    add_clipped(total, gradients, max_grad_norm=3.0)
    assert_all_close([(summed / -5.0).float() for summed in total], parameters, rtol=2e-4, atol=1e-7)


def test_a_gradient_of_millions_of_values_is_clipped_to_the_clip_and_not_beyond():
    """In single precision its norm comes out a thousandth too small, and the clip that much too large."""
    gradient = torch.rand(1, 20_000_000, generator=torch.Generator().manual_seed(0))
    assert 1.0 - 2e-4 < _clipped_norm(gradient) <= 1.0


def _clipped_norm(gradient):
    """The norm of one patient's share of a sum, clipped to 1."""
    total = zero_sums([gradient[0]])
    add_clipped(total, [gradient], max_grad_norm=1.0)
    return float(total[0].norm())


def test_no_gradient_is_lifted_above_the_clip_by_the_rounding_of_its_norm():
    """Equal values are the worst case: the same square is added again and again, and rounded the same way each time."""
    values = torch.linspace(1.0, 2.0, 400)
    norms = [_clipped_norm(value.expand(1, 4096).contiguous()) for value in values]
    assert 1.0 - 2e-4 < min(norms) <= max(norms) <= 1.0
    assert max(norms) > min(norms) + 1e-7  # the rounding is there
    tiny, huge = (torch.full((1, 4096), value) for value in (1e-25, 1e25))
    assert _clipped_norm(tiny) <= 1.0  # its squares underflow
    assert _clipped_norm(huge) == 0.0  # its squares overflow: nothing bounds it, and it adds nothing
    mixed = torch.cat([torch.full((1, 100_000), 1e-20), torch.full((1, 1), 1e-4)], dim=1)
    total = zero_sums([mixed[0]])
    add_clipped(total, [mixed], max_grad_norm=1e-4)
    assert float(total[0].norm()) <= 1e-4


def test_the_rounding_of_a_sum_adds_nothing_to_one_patients_influence():
    """Patients who stand just below a power of two, where single precision has finer steps than just above.

    One patient more lifts the sum across it. The many small gradients that come later are then lost to rounding, and
    the sum moves by that patient's share and all of theirs.
    """
    step = 2.0**-18  # of single precision just below 64; above, it is twice that
    others, patient, later = torch.full((127, 1), 0.5), torch.full((1, 1), 1000.0), torch.full((300, 1), -step)
    sums = []
    for gradients in ((others, patient, later), (others, later)):
        total = zero_sums([torch.zeros(1)])
        for gradient in gradients:
            add_clipped(total, [gradient], max_grad_norm=1.0)
        sums.append(float(total[0]))
    naive = [np.float32(0.0), np.float32(0.0)]  # how single precision would have summed up
    for place, gradients in enumerate(((others, torch.ones(1, 1), later), (others, later))):
        for value in torch.cat(gradients).numpy()[:, 0]:
            naive[place] += value
    assert naive[0] - naive[1] > 1.001
    assert 1.0 - 2e-4 < sums[0] - sums[1] <= 1.0


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_patient_whose_gradient_is_not_finite_adds_nothing(broken):
    random = torch.Generator().manual_seed(0)
    good = [torch.randn(2, 4, generator=random), torch.randn(2, 3, 3, generator=random)]
    bad = [torch.cat([gradient, gradient[:1].clone()]) for gradient in good]
    bad[1][2, 0, 1] = broken
    with_bad, without = (zero_sums([torch.zeros(4), torch.zeros(3, 3)]) for _ in range(2))
    add_clipped(with_bad, bad, max_grad_norm=1.0)
    add_clipped(without, good, max_grad_norm=1.0)
    assert_all_close(with_bad, without, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("gradients", ["loop", "hooks"])
def test_a_broken_image_costs_a_patient_his_part_of_the_step_and_nobody_else(gradients):
    images, targets = random_images(3)
    images[1, 0, 5, 5] = torch.nan
    read = lambda rows: (images[torch.from_numpy(rows)], targets[torch.from_numpy(rows)])  # noqa: E731
    one, other = small_model(), small_model()
    a_step(one, promise=a_promise(sigma=0.0, gradients=gradients)).take(rows_of([0], [1], [2]), read)
    a_step(other, promise=a_promise(sigma=0.0, gradients=gradients)).take(rows_of([0], [2]), read)
    assert_all_close(parameters_of(one), parameters_of(other))


@pytest.mark.parametrize("gradients", ["loop", "hooks"])
@pytest.mark.parametrize("num_images", [1, 2, 100])
def test_one_patient_more_moves_a_step_by_the_clip_at_most_however_many_images(gradients, num_images):
    """The worst case: identical images of one patient, whose gradients add up, and all far above the clip."""
    images, targets = random_images(4)
    images, targets = (
        torch.cat([images, images[:1].expand(100, -1, -1, -1)]),
        torch.cat([targets, targets[:1].expand(100, -1)]),
    )
    read = lambda rows: (images[torch.from_numpy(rows)], targets[torch.from_numpy(rows)])  # noqa: E731
    others, clip = rows_of([0], [1], [2, 3]), 0.01
    worst = np.arange(4, 4 + num_images, dtype=np.intp)
    without = released_sum(small_model(), others, read, clip=clip, gradients=gradients)
    with_patient = released_sum(small_model(), [*others, worst], read, clip=clip, gradients=gradients)
    influence = float((with_patient - without).norm())
    assert 0.99 * clip < influence <= clip * (1.0 + 1e-5)  # what leaves is rounded to single precision


class _SameSeeds:
    """Entropy whose seeds are all the same."""

    def bits(self, count):
        return np.full(count, 2**40 + 12345, dtype=np.uint64)


def _with_dropout():
    model = small_model()
    model.classifier.insert(7, nn.Dropout(0.5))
    return model


def test_what_dropout_takes_from_a_patient_does_not_depend_on_who_was_drawn_before():
    read, sums = reader_of_random_images(3), []
    for sampled in (rows_of([0, 1], [2]), rows_of([0, 1]), rows_of([2])):
        sums.append(released_sum(_with_dropout(), sampled, read, clip=1e3, entropy=_SameSeeds()))
    torch.testing.assert_close(sums[0], sums[1] + sums[2], rtol=1e-5, atol=1e-6)


def test_dropout_is_drawn_anew_for_every_pass():
    read, sums = reader_of_random_images(1), []
    for seed in (1, 2):
        sums.append(released_sum(_with_dropout(), rows_of([0]), read, clip=1e3, entropy=SeededEntropy(seed)))
    assert float((sums[0] - sums[1]).abs().max()) > 1e-4


def test_the_loop_reads_and_computes_every_image_alone():
    """So a patient's gradient has the same bits, and takes the same memory, whoever else was drawn."""
    model, passes, reads = small_model(), [], []
    model.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    read = reader_of_random_images(6)
    a_step(model).take(rows_of([0], [1, 2, 3], [4, 5]), lambda rows: (reads.append(rows.tolist()), read(rows))[1])
    assert passes == [1] * 6
    assert reads == [[row] for row in range(6)]
