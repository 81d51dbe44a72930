"""Patients' gradients and the private step, each against a slow and obvious reference."""

import dataclasses

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from torch import nn

from aecnn.config import DatasetConfig, ImagesConfig, ModelConfig, Plan, TrainingConfig
from aecnn.data.manifest import read_manifest
from aecnn.data.source import load_images
from aecnn.errors import CacheError, ManifestError, ModelError, PrivacyError
from aecnn.model.joint import build_architecture, build_model
from aecnn.model.loss import joint_loss_per_image
from aecnn.model.weights import weights_of
from aecnn.privacy_config import PrivacyConfig
from aecnn.training.loop import build_optimizer, train_locally
from aecnn.training.privacy import step as step_module
from aecnn.training.privacy.entropy import gaussian, secret_seed
from aecnn.training.privacy.gradients import Images, hook_gradients, loop_gradients, trained
from aecnn.training.privacy.promise import Promise
from aecnn.training.privacy.step import PrivateStep, add_clipped, uses_hooks, zero_sums
from aecnn.training.resume import LocalCheckpoint
from entropy_of_tests import SeededEntropy
from federation_in_process import same_weights
from small_model_of_tests import small_model

CPU = torch.device("cpu")
SIZE_PX = 64


def _images(count, *, seed=0, size_px=SIZE_PX):
    """Random images [count, 1, S, S] with targets [count, 14]."""
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, size_px, size_px, generator=random)
    return images, (torch.rand(count, 14, generator=random) < 0.3).float()


def _reader(count, *, seed=0):
    images, targets = _images(count, seed=seed)
    return lambda rows: (images[torch.from_numpy(rows)], targets[torch.from_numpy(rows)])


def _training(**changes):
    return TrainingConfig(
        **(
            {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 1e-3, "batch_size": 4, "local_steps": 1}
            | changes
        )
    )


def _promise(*, sigma=1.0, clip=1.0, sample_rate=0.5, patients=20, steps=1, gradients="loop", images_per_patient=1):
    config = PrivacyConfig(
        noise_multiplier=sigma or 1.0,
        max_grad_norm=clip,
        sample_rate=sample_rate,
        gradients=gradients,
        images_per_patient=images_per_patient,
        total_steps=steps,
    )
    return Promise(config, patients, delta=1e-5, noise_multiplier=sigma, steps_per_round=steps)


def _step(model, training=None, promise=None, *, seed=1):
    training, promise = training or _training(), promise or _promise()
    return PrivateStep(model, build_optimizer(model, training), training, promise, entropy=SeededEntropy(seed))


def _rows(*patients):
    return [np.array(rows, dtype=np.intp) for rows in patients]


def _state(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def _assert_close(found, wanted, *, rtol=1e-4, atol=1e-6):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=rtol, atol=atol)


# --- gradients of patients


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
    training = _training()
    one_by_one, at_once = _alone(model, batch, training), hook_gradients(model, batch, training)
    _assert_close(at_once, one_by_one, rtol=1e-9, atol=1e-9)
    return one_by_one


@pytest.mark.parametrize("name", _MODELS)
def test_hooks_loop_and_autograd_by_hand_give_the_same_gradients(name, monkeypatch):
    model = _MODELS[name]().double().train()
    images, targets = _images(4)
    batch = Images(images.double(), targets.double(), counts=[1, 2, 1])  # one patient has two: their mean
    found = _assert_ways_agree(model, batch, monkeypatch)
    _assert_close(found, _by_hand(model, batch, _training()), rtol=1e-9, atol=1e-9)
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
    images, targets = _images(2, size_px=size_px)
    batch = Images(images.double(), targets.double(), counts=[1, 1])
    found = dict(
        zip([n for n, _ in model.named_parameters()], _assert_ways_agree(model, batch, monkeypatch), strict=True)
    )
    if backbone == "inception_v3":
        assert float(found["classifier.AuxLogits.fc.weight"].abs().max()) > 0.0


def test_unknown_findings_and_bf16_go_through_both_ways():
    model = small_model()
    images, targets = _images(3)
    targets[0] = torch.nan
    targets[1, :5] = torch.nan
    for precision, tolerance in (("fp32", 1e-4), ("bf16", 0.1)):
        batch, training = Images(images, targets, [1, 1, 1]), _training(precision=precision)
        one_by_one = _alone(model, batch, training)
        at_once = [gradient.float() for gradient in hook_gradients(model, batch, training)]
        scale = max(float(gradient.abs().max()) for gradient in one_by_one)
        _assert_close(at_once, one_by_one, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("gradients", ["loop", "hooks"])
def test_a_model_is_left_without_hooks_and_attributes(gradients):
    model = _MODELS["resnet18-group"]().train()
    before = [{name: repr(value) for name, value in vars(module).items()} for module in model.modules()]
    _step(model, promise=_promise(gradients=gradients)).take(_rows([0], [1, 2]), _reader(3))
    assert [set(vars(module)) for module in model.modules()] == [set(own) for own in before]
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert not any(vars(parameter) or parameter.grad is not None for parameter in model.parameters())
    model(_images(1)[0])


def test_a_failure_in_the_middle_leaves_no_hooks_and_the_next_gradients_are_right():
    model = small_model()
    images, targets = _images(2)
    batch = Images(images, targets, [1, 1])
    wanted = hook_gradients(model, batch, _training())

    def fail(module, inputs, output):
        raise torch.OutOfMemoryError

    handle = model.classifier[4].register_forward_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        hook_gradients(model, batch, _training())
    handle.remove()
    assert not any(module._forward_hooks or vars(module).get("activations") for module in model.modules())
    again = hook_gradients(model, batch, _training())
    _assert_close(again, wanted, rtol=0.0, atol=0.0)


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
    _assert_close(total, wanted, rtol=2e-4)


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
    _assert_close([(summed / -5.0).float() for summed in total], parameters, rtol=2e-4, atol=1e-7)


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
    _assert_close(with_bad, without, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("gradients", ["loop", "hooks"])
def test_a_broken_image_costs_a_patient_his_part_of_the_step_and_nobody_else(gradients):
    images, targets = _images(3)
    images[1, 0, 5, 5] = torch.nan
    read = lambda rows: (images[torch.from_numpy(rows)], targets[torch.from_numpy(rows)])  # noqa: E731
    one, other = small_model(), small_model()
    _step(one, promise=_promise(sigma=0.0, gradients=gradients)).take(_rows([0], [1], [2]), read)
    _step(other, promise=_promise(sigma=0.0, gradients=gradients)).take(_rows([0], [2]), read)
    _assert_close(_state(one), _state(other))


def _released_sum(model, sampled, read, *, clip, gradients="loop", entropy=None):
    """What a step would release were there no noise, as a vector: the sum over patients of clipped gradients."""
    promise = _promise(sigma=0.0, clip=clip, sample_rate=1.0, patients=1, gradients=gradients)
    training, caught = _training(weight_decay=0.0), []
    step = PrivateStep(model, build_optimizer(model, training), training, promise, entropy=entropy or SeededEntropy(1))
    handle = step._optimizer.register_step_pre_hook(
        lambda optimizer, *_: caught.extend(p.grad.double().flatten() for p in optimizer.param_groups[0]["params"])
    )
    step.take(sampled, read)
    handle.remove()
    return torch.cat(caught)


@pytest.mark.parametrize("gradients", ["loop", "hooks"])
@pytest.mark.parametrize("num_images", [1, 2, 100])
def test_one_patient_more_moves_a_step_by_the_clip_at_most_however_many_images(gradients, num_images):
    """The worst case: identical images of one patient, whose gradients add up, and all far above the clip."""
    images, targets = _images(4)
    images, targets = (
        torch.cat([images, images[:1].expand(100, -1, -1, -1)]),
        torch.cat([targets, targets[:1].expand(100, -1)]),
    )
    read = lambda rows: (images[torch.from_numpy(rows)], targets[torch.from_numpy(rows)])  # noqa: E731
    others, clip = _rows([0], [1], [2, 3]), 0.01
    worst = np.arange(4, 4 + num_images, dtype=np.intp)
    without = _released_sum(small_model(), others, read, clip=clip, gradients=gradients)
    with_patient = _released_sum(small_model(), [*others, worst], read, clip=clip, gradients=gradients)
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
    read, sums = _reader(3), []
    for sampled in (_rows([0, 1], [2]), _rows([0, 1]), _rows([2])):
        sums.append(_released_sum(_with_dropout(), sampled, read, clip=1e3, entropy=_SameSeeds()))
    torch.testing.assert_close(sums[0], sums[1] + sums[2], rtol=1e-5, atol=1e-6)


def test_dropout_is_drawn_anew_for_every_pass():
    read, sums = _reader(1), []
    for seed in (1, 2):
        sums.append(_released_sum(_with_dropout(), _rows([0]), read, clip=1e3, entropy=SeededEntropy(seed)))
    assert float((sums[0] - sums[1]).abs().max()) > 1e-4


def test_the_loop_reads_and_computes_every_image_alone():
    """So a patient's gradient has the same bits, and takes the same memory, whoever else was drawn."""
    model, passes, reads = small_model(), [], []
    model.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    read = _reader(6)
    _step(model).take(_rows([0], [1, 2, 3], [4, 5]), lambda rows: (reads.append(rows.tolist()), read(rows))[1])
    assert passes == [1] * 6
    assert reads == [[row] for row in range(6)]


# --- the step


def _reference_step(model, optimizer, sampled, read, promise, training, entropy, *, passes):
    """DP-SGD as the paper writes it, one image at a time; each pass takes a seed before the noise is drawn."""
    for _ in range(passes):
        secret_seed(entropy)
    parameters = list(model.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for own in sampled:
        mean = [torch.zeros_like(parameter) for parameter in parameters]
        for row in own:
            image, target = read(np.array([row]))
            loss = joint_loss_per_image(model(image), image, target, bce_weight=training.bce_weight).total.sum()
            for summed, gradient in zip(mean, torch.autograd.grad(loss, parameters), strict=True):
                summed += gradient / len(own)
        norm = torch.sqrt(sum(gradient.square().sum() for gradient in mean))
        for summed, gradient in zip(total, mean, strict=True):
            summed += gradient / max(1.0, float(norm) / promise.config.max_grad_norm)
    for parameter, summed in zip(parameters, total, strict=True):
        noise = gaussian(entropy, summed.numel(), device=CPU).reshape(summed.shape).float()
        noise *= promise.noise_multiplier * promise.config.max_grad_norm
        parameter.grad = (summed + noise) / (promise.config.sample_rate * promise.declared_patients)
    optimizer.step()


@pytest.mark.parametrize("gradients", ["loop", "hooks"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_agree_with_a_loop_over_patients_as_the_paper_has_it(gradients, optimizer):
    training = _training(optimizer=optimizer, learning_rate=0.01)
    promise = _promise(sigma=0.3, clip=0.5, gradients=gradients)
    read, batches = _reader(9), (_rows([0], [1, 2], [3]), [], _rows([4, 5, 6], [7], [8], [0], [1]))
    found, wanted = small_model(), small_model()
    step = _step(found, training, promise, seed=4)
    reference, entropy = build_optimizer(wanted, training), SeededEntropy(4)
    for sampled, parts in zip(batches, (1, 0, 2), strict=True):
        num_images = sum(own.size for own in sampled)
        assert step.take(sampled, read) == num_images
        passes = num_images if gradients == "loop" else parts
        _reference_step(wanted, reference, sampled, read, promise, training, entropy, passes=passes)
        _assert_close(_state(found), _state(wanted), rtol=2e-4, atol=2e-6)


def test_how_many_images_hooks_have_in_memory_at_a_time_does_not_matter():
    sampled, states = _rows([0], [1, 2, 3], [4], [5, 6], [7]), []
    for batch_size in (1, 2, 3, 100):
        model = small_model()
        promise = _promise(sigma=0.0, gradients="hooks")
        _step(model, _training(batch_size=batch_size), promise).take(sampled, _reader(8))
        states.append(_state(model))
    for state in states[1:]:
        _assert_close(state, states[0], rtol=1e-5, atol=1e-6)


def test_memory_that_runs_out_half_way_through_a_part_counts_no_patient_twice(monkeypatch, caplog):
    sampled, read = _rows([0], [1], [2], [3]), _reader(4)
    whole = _released_sum(small_model(), sampled, read, clip=0.01, gradients="hooks")
    calls = []

    def short_of_memory(total, found, *, max_grad_norm):
        calls.append(len(found[0]))
        add_clipped(total, found, max_grad_norm=max_grad_norm)
        if len(calls) == 1:  # when the patients of the part have been added
            raise torch.OutOfMemoryError

    monkeypatch.setattr(step_module, "add_clipped", short_of_memory)
    torch.testing.assert_close(_released_sum(small_model(), sampled, read, clip=0.01, gradients="hooks"), whole)
    assert "goes on with 2 images" in caplog.text
    assert calls == [4, 2, 2]


def _room_for(model, most):
    """Gives the model, whose memory is too small for more images in a pass."""

    def check(module, inputs):
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError

    model.register_forward_pre_hook(check)
    return model


def test_a_patient_whose_images_hooks_have_no_memory_for_goes_through_them_one_by_one():
    """Otherwise an error would tell that a patient with many images was drawn."""
    sampled, read = _rows([0], [1, 2, 3], [4]), _reader(5)
    whole = _released_sum(small_model(), sampled, read, clip=0.01, gradients="hooks")
    found = _released_sum(_room_for(small_model(), 1), sampled, read, clip=0.01, gradients="hooks")
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("gradients", ["loop", "hooks"])
def test_memory_too_small_for_one_image_is_told_with_the_remedy(gradients):
    model = _room_for(small_model(), 0)
    with pytest.raises(ModelError, match=r"one image: .* device: cpu"):
        _step(model, promise=_promise(gradients=gradients)).take(_rows([0, 1], [2]), _reader(3))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_empty_batch_takes_a_step_of_pure_noise_of_the_promised_size():
    model, promise = small_model(channels=32), _promise(sigma=2.0, clip=0.5, sample_rate=0.25, patients=40)
    before = _state(model)
    step = _step(model, _training(learning_rate=1.0, weight_decay=0.0), promise)
    assert step.take([], _reader(1)) == 0
    moved = torch.cat([(one - other).flatten() for one, other in zip(_state(model), before, strict=True)])
    assert moved.numel() > 10_000
    assert float(moved.std()) == pytest.approx(2.0 * 0.5 / (0.25 * 40), rel=0.03)
    assert abs(float(moved.mean())) < 5 * float(moved.std()) / moved.numel() ** 0.5


def test_noise_is_new_in_every_step_and_for_every_weight():
    model = small_model()
    step = _step(model, _training(learning_rate=1.0, weight_decay=0.0), _promise(sigma=1.0))
    moves = []
    for _ in range(3):
        step._optimizer.state.clear()  # without momentum, a step is its noise
        before = _state(model)
        step.take([], _reader(1))
        moves.append(torch.cat([(a - b).flatten() for a, b in zip(_state(model), before, strict=True)]))
    together = torch.corrcoef(torch.stack(moves))
    assert float((together - torch.eye(3)).abs().max()) < 6.0 / moves[0].numel() ** 0.5
    assert torch.cat(moves).unique().numel() > 0.99 * sum(move.numel() for move in moves)


def test_the_denominator_is_fixed_whatever_was_sampled():
    """Half as many declared patients: twice the step. More sampled patients: the others' share stays the same."""
    read, moves = _reader(4), {}
    for patients in (10, 20):
        for sampled in (_rows([0]), _rows([0], [1])):
            model = small_model()
            before = _state(model)
            training = _training(weight_decay=0.0)
            _step(model, training, _promise(sigma=0.0, clip=0.01, patients=patients)).take(sampled, read)
            moved = [(a - b).double().flatten() for a, b in zip(_state(model), before, strict=True)]
            moves[patients, len(sampled)] = torch.cat(moved)
    torch.testing.assert_close(moves[10, 1], 2.0 * moves[20, 1], rtol=1e-2, atol=1e-6)
    other = _released_sum(small_model(), _rows([1]), read, clip=0.01)
    torch.testing.assert_close(moves[10, 2] - moves[10, 1], -0.1 * other / (0.5 * 10), rtol=1e-2, atol=1e-6)


def test_gradients_come_from_hooks_on_a_gpu_and_from_a_loop_on_a_cpu_unless_told():
    auto, loop, hooks = (_promise(gradients=way).config for way in ("auto", "loop", "hooks"))
    devices = torch.device("cpu"), torch.device("cuda")
    assert [[uses_hooks(way, device) for device in devices] for way in (auto, loop, hooks)] == [
        [False, True],
        [False, False],
        [True, True],
    ]


# --- a training


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
    promise = _promise(sigma=1e-12, clip=1e3, sample_rate=1.0, patients=12, steps=3, gradients=gradients)
    private, _ = _train(data, promise, optimizer=optimizer, batch_size=5)
    plain, _ = _train(data, None, optimizer=optimizer)
    start = weights_of(small_model())
    for name, weights in plain.items():
        # Adam's step is its learning rate times a sign, even where a gradient is next to nothing.
        tolerance = 2e-6 if optimizer == "sgd" else 1e-3
        np.testing.assert_allclose(private[name], weights, rtol=1e-4, atol=tolerance)
    assert max(float(np.abs(plain[name] - start[name]).max()) for name in start) > 1e-3


def test_two_runs_of_one_seed_differ_under_privacy_and_agree_without(data):
    promise = _promise(steps=3)
    assert not same_weights(_train(data, promise)[0], _train(data, promise)[0])
    assert same_weights(_train(data, None)[0], _train(data, None)[0])


def test_two_runs_of_the_same_injected_entropy_agree_whatever_the_seed(data):
    promise = _promise(steps=3)
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
    promise, rows = _promise(steps=3, sample_rate=1.0), _one_image_a_patient(data)
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
    promise = _promise(sample_rate=1.0, gradients=gradients)
    with pytest.raises(PrivacyError, match="the private training failed") as caught:
        train_locally(small_model(), broken, np.arange(4), _plan(promise), seed=1, device=CPU, promise=promise)
    assert type(caught.value) is PrivacyError


def test_privacy_without_a_promise_and_a_promise_without_privacy_are_refused(data):
    with pytest.raises(PrivacyError, match="promise"):
        train_locally(small_model(), data, np.arange(4), _plan(_promise()), seed=1, device=CPU)
    with pytest.raises(PrivacyError, match="promise"):
        train_locally(small_model(), data, np.arange(4), _plan(), seed=1, device=CPU, promise=_promise())


def test_a_private_training_cut_short_goes_on_to_its_number_of_steps(data, tmp_path):
    class PowerCutError(Exception):
        pass

    promise, steps = _promise(steps=5), []
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
    promise, ends = _promise(steps=2), []
    for attempt in range(2):
        checkpoint = LocalCheckpoint(tmp_path / f"{attempt}.safetensors", key="r1", interval_s=0.0)
        ends.append(_train(data, dataclasses.replace(promise), checkpoint=checkpoint)[0])
    assert not same_weights(*ends)
