"""The private step, against a loop over patients as the paper has it."""

import numpy as np
import pytest
import torch

from aecnn.errors import ModelError
from aecnn.model.loss import joint_loss_per_image
from aecnn.training.loop import build_optimizer
from aecnn.training.privacy import step as step_module
from aecnn.training.privacy.entropy import gaussian, secret_seed
from aecnn.training.privacy.step import add_clipped, uses_hooks
from entropy_of_tests import SeededEntropy
from private_steps_of_tests import (
    CPU,
    a_promise,
    a_step,
    a_training,
    assert_all_close,
    parameters_of,
    reader_of_random_images,
    released_sum,
    rows_of,
)
from small_model_of_tests import small_model


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
    training = a_training(optimizer=optimizer, learning_rate=0.01)
    promise = a_promise(sigma=0.3, clip=0.5, gradients=gradients)
    read, batches = reader_of_random_images(9), (rows_of([0], [1, 2], [3]), [], rows_of([4, 5, 6], [7], [8], [0], [1]))
    found, wanted = small_model(), small_model()
    step = a_step(found, training, promise, seed=4)
    reference, entropy = build_optimizer(wanted, training), SeededEntropy(4)
    for sampled, parts in zip(batches, (1, 0, 2), strict=True):
        num_images = sum(own.size for own in sampled)
        assert step.take(sampled, read) == num_images
        passes = num_images if gradients == "loop" else parts
        _reference_step(wanted, reference, sampled, read, promise, training, entropy, passes=passes)
        assert_all_close(parameters_of(found), parameters_of(wanted), rtol=2e-4, atol=2e-6)


def test_how_many_images_hooks_have_in_memory_at_a_time_does_not_matter():
    sampled, states = rows_of([0], [1, 2, 3], [4], [5, 6], [7]), []
    for batch_size in (1, 2, 3, 100):
        model = small_model()
        promise = a_promise(sigma=0.0, gradients="hooks")
        a_step(model, a_training(batch_size=batch_size), promise).take(sampled, reader_of_random_images(8))
        states.append(parameters_of(model))
    for state in states[1:]:
        assert_all_close(state, states[0], rtol=1e-5, atol=1e-6)


def test_memory_that_runs_out_half_way_through_a_part_counts_no_patient_twice(monkeypatch, caplog):
    sampled, read = rows_of([0], [1], [2], [3]), reader_of_random_images(4)
    whole = released_sum(small_model(), sampled, read, clip=0.01, gradients="hooks")
    calls = []

    def short_of_memory(total, found, *, max_grad_norm):
        calls.append(len(found[0]))
        add_clipped(total, found, max_grad_norm=max_grad_norm)
        if len(calls) == 1:  # when the patients of the part have been added
            raise torch.OutOfMemoryError

    monkeypatch.setattr(step_module, "add_clipped", short_of_memory)
    torch.testing.assert_close(released_sum(small_model(), sampled, read, clip=0.01, gradients="hooks"), whole)
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
    sampled, read = rows_of([0], [1, 2, 3], [4]), reader_of_random_images(5)
    whole = released_sum(small_model(), sampled, read, clip=0.01, gradients="hooks")
    found = released_sum(_room_for(small_model(), 1), sampled, read, clip=0.01, gradients="hooks")
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("gradients", ["loop", "hooks"])
def test_memory_too_small_for_one_image_is_told_with_the_remedy(gradients):
    model = _room_for(small_model(), 0)
    with pytest.raises(ModelError, match=r"one image: .* device: cpu"):
        a_step(model, promise=a_promise(gradients=gradients)).take(rows_of([0, 1], [2]), reader_of_random_images(3))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_empty_batch_takes_a_step_of_pure_noise_of_the_promised_size():
    model, promise = small_model(channels=32), a_promise(sigma=2.0, clip=0.5, sample_rate=0.25, patients=40)
    before = parameters_of(model)
    step = a_step(model, a_training(learning_rate=1.0, weight_decay=0.0), promise)
    assert step.take([], reader_of_random_images(1)) == 0
    moved = torch.cat([(one - other).flatten() for one, other in zip(parameters_of(model), before, strict=True)])
    assert moved.numel() > 10_000
    assert float(moved.std()) == pytest.approx(2.0 * 0.5 / (0.25 * 40), rel=0.03)
    assert abs(float(moved.mean())) < 5 * float(moved.std()) / moved.numel() ** 0.5


def test_noise_is_new_in_every_step_and_for_every_weight():
    model = small_model()
    step = a_step(model, a_training(learning_rate=1.0, weight_decay=0.0), a_promise(sigma=1.0))
    moves = []
    for _ in range(3):
        step._optimizer.state.clear()  # without momentum, a step is its noise
        before = parameters_of(model)
        step.take([], reader_of_random_images(1))
        moves.append(torch.cat([(a - b).flatten() for a, b in zip(parameters_of(model), before, strict=True)]))
    together = torch.corrcoef(torch.stack(moves))
    assert float((together - torch.eye(3)).abs().max()) < 6.0 / moves[0].numel() ** 0.5
    assert torch.cat(moves).unique().numel() > 0.99 * sum(move.numel() for move in moves)


def test_the_denominator_is_fixed_whatever_was_sampled():
    """Half as many declared patients: twice the step. More sampled patients: the others' share stays the same."""
    read, moves = reader_of_random_images(4), {}
    for patients in (10, 20):
        for sampled in (rows_of([0]), rows_of([0], [1])):
            model = small_model()
            before = parameters_of(model)
            training = a_training(weight_decay=0.0)
            a_step(model, training, a_promise(sigma=0.0, clip=0.01, patients=patients)).take(sampled, read)
            moved = [(a - b).double().flatten() for a, b in zip(parameters_of(model), before, strict=True)]
            moves[patients, len(sampled)] = torch.cat(moved)
    torch.testing.assert_close(moves[10, 1], 2.0 * moves[20, 1], rtol=1e-2, atol=1e-6)
    other = released_sum(small_model(), rows_of([1]), read, clip=0.01)
    torch.testing.assert_close(moves[10, 2] - moves[10, 1], -0.1 * other / (0.5 * 10), rtol=1e-2, atol=1e-6)


def test_gradients_come_from_hooks_on_a_gpu_and_from_a_loop_on_a_cpu_unless_told():
    auto, loop, hooks = (a_promise(gradients=way).config for way in ("auto", "loop", "hooks"))
    devices = torch.device("cpu"), torch.device("cuda")
    assert [[uses_hooks(way, device) for device in devices] for way in (auto, loop, hooks)] == [
        [False, True],
        [False, False],
        [True, True],
    ]
