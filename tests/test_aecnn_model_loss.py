"""The joint loss agrees with a slow loop over images and findings, and unknown findings add nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aecnn.model.joint import Output
from aecnn.model.loss import joint_loss, joint_loss_per_image, masked_bce_per_image


def _case(seed: int, *, num_images: int = 5, known: float = 0.6, aux: bool = False) -> tuple[Output, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    logits = (8 * draw(num_images, 14) - 4).requires_grad_()
    aux_logits = (8 * draw(num_images, 14) - 4).requires_grad_() if aux else None
    reconstruction = draw(num_images, 1, 8, 8).requires_grad_()
    targets = (draw(num_images, 14) < 0.3).float()
    targets[draw(num_images, 14) > known] = float("nan")
    output = Output(logits, aux_logits, reconstruction, latent=draw(num_images, 1, 2, 2))
    return output, draw(num_images, 1, 8, 8), targets


def _slow_bce(logits: Tensor, targets: Tensor) -> float:
    terms = []
    for logit, target in zip(logits.tolist(), targets.tolist(), strict=True):
        if not math.isnan(target):
            probability = 1 / (1 + math.exp(-logit))
            terms.append(-math.log(probability) if target == 1 else -math.log(1 - probability))
    return sum(terms) / len(terms) if terms else 0.0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), known=st.floats(0, 1), bce_weight=st.floats(0, 1), aux=st.booleans())
def test_it_is_the_mean_over_images_of_a_slow_loop(seed: int, known: float, bce_weight: float, aux: bool) -> None:
    output, images, targets = _case(seed, known=known, aux=aux)
    bce, mse = [], []
    for index in range(len(images)):
        main = _slow_bce(output.logits[index], targets[index])
        if output.aux_logits is not None:
            main = 0.8 * main + 0.2 * _slow_bce(output.aux_logits[index], targets[index])
        bce.append(main)
        pixels = zip(output.reconstruction[index].flatten().tolist(), images[index].flatten().tolist(), strict=True)
        mse.append(sum((a - b) ** 2 for a, b in pixels) / 64)
    with torch.no_grad():
        loss = joint_loss(output, images, targets, bce_weight=bce_weight)
    assert float(loss.bce) == pytest.approx(sum(bce) / 5, abs=1e-5)
    assert float(loss.mse) == pytest.approx(sum(mse) / 5, abs=1e-6)
    assert float(loss.total) == pytest.approx(bce_weight * sum(bce) / 5 + (1 - bce_weight) * sum(mse) / 5, abs=1e-5)


def test_gradients_stay_finite_and_vanish_where_a_finding_is_unknown() -> None:
    output, images, targets = _case(1, known=0.3)
    targets[2] = float("nan")
    joint_loss(output, images, targets, bce_weight=0.9).total.backward()
    assert output.logits.grad is not None
    assert torch.isfinite(output.logits.grad).all()
    assert torch.equal(output.logits.grad != 0, ~torch.isnan(targets))


def test_an_image_without_known_findings_has_a_bce_of_zero() -> None:
    output, images, targets = _case(2)
    targets[3] = float("nan")
    assert joint_loss_per_image(output, images, targets, bce_weight=0.9).bce[3].item() == 0.0


def test_the_gradient_of_one_image_does_not_depend_on_what_is_known_of_another() -> None:
    gradients = []
    for known_of_the_other in (True, False):
        output, images, targets = _case(3, known=1.0)
        if not known_of_the_other:
            targets[1:] = float("nan")
        joint_loss(output, images, targets, bce_weight=0.9).total.backward()
        assert output.logits.grad is not None
        gradients.append(output.logits.grad[0])
    assert torch.equal(*gradients)


def test_predicting_the_training_prevalence_gives_the_published_floor() -> None:
    # Positives of the AE-CNN train list of 76,524 images; the floor is the entropy of the prevalences, 0.163.
    positives = [7333, 1491, 7641, 12151, 3534, 4175, 760, 2331, 2516, 1203, 1263, 1100, 1962, 125]
    prevalence = torch.tensor(positives, dtype=torch.float64) / 76_524
    ones, zeros = torch.ones(1, 14), torch.zeros(1, 14)
    per_finding = [
        float(p) * float(masked_bce_per_image(torch.logit(prevalence)[None], _only(ones, i)))
        + (1 - float(p)) * float(masked_bce_per_image(torch.logit(prevalence)[None], _only(zeros, i)))
        for i, p in enumerate(prevalence)
    ]
    assert sum(per_finding) / 14 == pytest.approx(0.163, abs=1e-3)


def _only(targets: Tensor, index: int) -> Tensor:
    masked = torch.full_like(targets, float("nan"))
    masked[:, index] = targets[:, index]
    return masked


def test_an_empty_batch_costs_nothing() -> None:
    output, images, targets = _case(4, num_images=0)
    assert [part.item() for part in joint_loss(output, images, targets, bce_weight=0.9)] == [0.0, 0.0, 0.0]


def test_half_precision_outputs_are_summed_in_single_precision() -> None:
    output, images, targets = _case(5)
    half = Output(output.logits.bfloat16(), None, output.reconstruction.bfloat16(), output.latent)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = joint_loss(half, images, targets, bce_weight=0.9)
    assert {part.dtype for part in loss} == {torch.float32}
