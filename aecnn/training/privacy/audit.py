"""An attack on our own training, to see that the privacy it claims is there: one run, many canaries.

Each of M canary patients takes part with probability 1/2. The attacker knows everything that differential privacy
allows (all patients' images, the weights before each step, each step's noised gradient) but who takes part, who was
sampled, and the noise. From each step the attacker estimates how much of every canary's gradient is in what was
released, adds the estimates up, and guesses that the highest quarter took part and the lowest did not. How often that
can be right bounds ε from below (Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run", NeurIPS
2023, theorem 5.2 and appendix D).

Whoever sees only a round's weights, as the centre does, knows less: a bound found here holds against the claim, which
is about the whole sequence of steps; that none is found is no proof.

Shapes: M canaries, K images of each, which are near copies.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from aecnn.config import Plan, TrainingConfig
from aecnn.data.augmentation import to_input
from aecnn.model.joint import JointAECNN
from aecnn.model.loss import joint_loss_per_image
from aecnn.training.loop import train_locally
from aecnn.training.privacy.accounting import Mechanism, epsilon_of
from aecnn.training.privacy.canaries import Canaries
from aecnn.training.privacy.entropy import Entropy, uniform
from aecnn.training.privacy.gradients import trained
from aecnn.training.privacy.promise import Promise

CONFIDENCE = 0.95
_GUESSED = 4  # a quarter of the canaries, at either end
_ITERATIONS = 12  # of conjugate gradients: the gradients are nearly at right angles, so few suffice
_MOST_ORDINARY = 256  # ordinary images that the attacker reckons with
_LARGEST_BOUND = 100.0


@dataclass(frozen=True)
class Evidence:
    """What an attacker found out, over one run or several."""

    included: NDArray[np.bool_]  # [runs, M]
    scores: NDArray[np.float64]  # [runs, M], higher: rather included

    @property
    def num_guesses(self) -> int:
        """How many canaries are guessed, over all runs."""
        return len(self.scores) * 2 * _num_guessed(self.scores.shape[1])

    @property
    def num_correct(self) -> int:
        """How many guesses are right."""
        most = _num_guessed(self.scores.shape[1])
        ordered = np.take_along_axis(self.included, np.argsort(self.scores, axis=1, kind="stable"), axis=1)
        return int(ordered[:, -most:].sum()) + int((~ordered[:, :most]).sum())

    @property
    def auroc(self) -> float:
        """How well scores tell canaries inside from outside: 0.5 is chance; the mean over runs."""
        pairs = [
            np.sign(scores[included][:, None] - scores[~included]).mean() / 2.0 + 0.5
            for scores, included in zip(self.scores, self.included, strict=True)
            if included.any() and not included.all()
        ]
        return float(np.mean(pairs)) if pairs else float("nan")

    def epsilon_at_least(self, *, delta: float) -> float:
        """Gives what ε is at least, with 95 % confidence."""
        return lower_bound(
            num_canaries=self.scores.size, num_guesses=self.num_guesses, num_correct=self.num_correct, delta=delta
        )


def _num_guessed(num_canaries: int) -> int:
    return max(1, num_canaries // _GUESSED)


def lower_bound(*, num_canaries: int, num_guesses: int, num_correct: int, delta: float) -> float:
    """Gives the largest ε that so many right guesses refute with 95 % confidence, 0 where they refute none.

    Args:
        num_canaries: Each in with probability 1/2, guessed or not.
        num_guesses: Fixed before anything was seen.
        num_correct: Of the guesses.
        delta: δ of the claim.
    """
    low, high = 0.0, _LARGEST_BOUND
    if _chance(num_canaries, num_guesses, num_correct, low, delta) > 1.0 - CONFIDENCE:
        return 0.0
    while high - low > 1e-4:
        middle = (low + high) / 2.0
        refuted = _chance(num_canaries, num_guesses, num_correct, middle, delta) <= 1.0 - CONFIDENCE
        low, high = (middle, high) if refuted else (low, middle)
    return low


def _chance(num_canaries: int, num_guesses: int, num_correct: int, epsilon: float, delta: float) -> float:
    """Bounds the probability of so many right guesses or more under (ε, δ): theorem 5.2, as appendix D computes it."""
    from scipy.stats import binom  # type: ignore[attr-defined]

    truthful = 1.0 / (1.0 + np.exp(-epsilon))  # how often randomised response with ε is right
    tail = float(binom.sf(num_correct - 1, num_guesses, truthful))
    nearly = np.cumsum(binom.pmf(np.arange(num_correct - 1, -1, -1), num_guesses, truthful))
    worst = float((nearly / np.arange(1, num_correct + 1)).max(initial=0.0))
    return min(1.0, tail + 2.0 * num_canaries * delta * worst)


def claimed_epsilon(promise: Promise, *, num_rounds: int) -> float:
    """Gives ε of the rounds that an attack runs."""
    mechanism = Mechanism(promise.noise_multiplier, promise.config.sample_rate, num_rounds * promise.steps_per_round)
    return epsilon_of([mechanism], delta=promise.delta, accountant=promise.config.accountant)


def without_privacy(plan: Plan, promise: Promise) -> Plan:
    """Gives the plan that trains as many steps on as many images without privacy."""
    batch_size = max(1, round(promise.config.sample_rate * promise.declared_patients))
    training = plan.training.model_copy(update={"privacy": None, "batch_size": batch_size})
    return plan.model_copy(update={"training": training})


def attack(
    build: Callable[[], JointAECNN],
    canaries: Canaries,
    plan: Plan,
    promise: Promise | None,
    *,
    num_rounds: int,
    num_runs: int,
    seed: int,
    entropy: Entropy,
    device: torch.device,
    on_step: Callable[[], None] | None = None,
) -> Evidence:
    """Trains and attacks, each run with canaries drawn anew.

    Args:
        build: Gives the model that a run starts from.
        canaries: Ordinary patients and canaries.
        plan: With privacy exactly where there is a promise.
        promise: Clip, noise, sample rate and denominator of the training; None: without privacy.
        num_rounds: Local trainings one after another, each with an optimiser of its own, as in a federation.
        num_runs: Of training from the start.
        seed: Of the training.
        entropy: Draws who takes part, and under differential privacy all the rest.
        device: Where to compute.
        on_step: Called after each step.
    """
    included = uniform(entropy, num_runs * len(canaries)).reshape(num_runs, -1) < 0.5
    scores = np.zeros(included.shape)
    for run in range(num_runs):
        model, rows = build(), canaries.training_rows(included[run])
        with listening(model, canaries, plan, device=device) as found:
            for number in range(num_rounds):
                train_locally(
                    model,
                    canaries.data,
                    rows,
                    plan,
                    seed=seed + run * num_rounds + number,
                    device=device,
                    promise=promise,
                    entropy=entropy,
                    on_step=None if on_step is None else lambda done, total: on_step(),
                )
        scores[run] = found.cpu().numpy()
    return Evidence(included, scores)


@contextmanager
def listening(model: JointAECNN, canaries: Canaries, plan: Plan, *, device: torch.device) -> Iterator[Tensor]:
    """Gives the canaries' scores [M], which grow with every step that the model's optimiser takes."""
    # A canary's other images are near copies of its first. What ordinary patients add is told apart, not left as noise.
    rows = np.concatenate([canaries.rows[:, 0], canaries.ordinary[:_MOST_ORDINARY]])
    images = to_input(canaries.data.images.read(rows.astype(np.int64)), plan.images).to(device)
    targets = torch.from_numpy(canaries.data.manifest.targets[rows]).to(device)
    scores = torch.zeros(len(canaries), dtype=torch.float64, device=device)
    parameters = trained(model)

    def listen(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if optimizer.param_groups[0]["params"][0] is not parameters[0]:
            return  # somebody else's
        released = [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in parameters]
        with torch.enable_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            losses = _losses(model, images, targets, plan.training)
            scores.add_(_shares(losses, parameters, released)[: len(canaries)])

    handle = register_optimizer_step_pre_hook(listen)
    try:
        yield scores
    finally:
        handle.remove()


def _losses(model: JointAECNN, images: Tensor, targets: Tensor, training: TrainingConfig) -> Tensor:
    return joint_loss_per_image(model(images), images, targets, bce_weight=training.bce_weight).total


def _shares(losses: Tensor, parameters: Sequence[Tensor], released: Sequence[Tensor]) -> Tensor:
    """Gives the least-squares share [B] of each image's gradient in a released one.

    With J the images' gradients [B, weights] and u the released one, it solves J·Jᵀ a = J·u without ever holding J:
    Jᵀa is a gradient of the losses weighted by a, and J·u the derivative of ⟨Jᵀw, u⟩ by w.

    Args:
        losses: One an image [B], with their graph.
        parameters: What trains.
        released: The step's gradient.
    """
    weights = torch.ones_like(losses, requires_grad=True)
    combined = torch.autograd.grad((losses * weights).sum(), parameters, create_graph=True)

    def along(direction: Sequence[Tensor]) -> Tensor:  # J·u
        dots = torch.stack([(one * other).sum() for one, other in zip(combined, direction, strict=True)]).sum()
        return torch.autograd.grad(dots, weights, retain_graph=True)[0].double()

    def gram(shares: Tensor) -> Tensor:  # J·Jᵀ a
        weighted = (losses * shares.to(losses.dtype)).sum()
        return along(torch.autograd.grad(weighted, parameters, retain_graph=True))

    return _conjugate_gradients(gram, along(released), iterations=_ITERATIONS)


def _conjugate_gradients(multiply: Callable[[Tensor], Tensor], wanted: Tensor, *, iterations: int) -> Tensor:
    """Solves A x = b for a positive A that is only given as a product (Hestenes and Stiefel 1952)."""
    solution, residual, direction = torch.zeros_like(wanted), wanted.clone(), wanted.clone()
    square = residual.dot(residual)
    for _ in range(iterations):
        if float(square) == 0.0:
            break
        product = multiply(direction)
        step = square / direction.dot(product)
        solution, residual = solution + step * direction, residual - step * product
        before, square = square, residual.dot(residual)
        direction = residual + (square / before) * direction
    return solution
