"""Differential privacy of whole hospitals: the centre clips each hospital's update and adds noise to their average.

Flower's own wrappers around its FedAvg, with fixed clipping (McMahan et al., ICLR 2018) or adaptive (Andrew et al.,
NeurIPS 2021). What they assume is seen to here: all hospitals weigh the same; the number they divide the noise by is
that of the updates averaged; the noise is seeded by the operating system and not by the run. They draw it from NumPy's
global generator, which is no cryptographic one, in the precision of the weights.

Adjacency: one hospital's contributions to all rounds are added or removed, and how many took part in each round is
known. Every round counts as if everybody had been in it: hospitals are drawn in a way that amplifies nothing. Covered
are the weights alone: what hospitals tell of losses, counts and AUROC is not, nor is the choice of a round by it.

K hospitals in a round, z the noise multiplier, C the clip, N weights: the noise on each weight of the average has the
standard deviation z·C/K, and the norm √N·z·C/K, where an update's is C at most.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)

from aecnn.config import FederationConfig
from aecnn.errors import FederationError
from aecnn.model.weights import Weights, pack_weights, unpack_weights
from aecnn.privacy_config import CentralPrivacyConfig
from aecnn.training.privacy.accounting import Mechanism, epsilon_of
from server.average import Update
from server.privacy import epsilon_named
from server.spool import SpooledWeights
from server.strategy import Aggregated, is_parameter, message_of, quiet_flower, record_of, taken_from
from server.words import counted

INITIAL_CLIPPING_NORM, TARGET_CLIPPED_QUANTILE, CLIP_NORM_LR = 0.1, 0.5, 0.2  # Andrew et al.
_CLIP = "clipping_norm"  # of the strategy's state
_SEED_WORDS = 624  # all of the generator's state, of 32 bits each

Event = dict[str, Any]


class _AdaptiveClipping(DifferentialPrivacyServerSideAdaptiveClipping):
    """Flower's, without its move of the clip: that comes before the noise is added, and goes the wrong way.

    The noise must be that of the clip which was applied. And the clip must rise where more updates than wanted were
    clipped (Andrew et al., algorithm 1, in which the share is that of the updates which were not).
    """

    clipped_share: float  # with noise

    def _geometric_update(self, clipped_fraction: float) -> None:
        self.clipped_share = min(max(clipped_fraction, 0.0), 1.0)

    def next_clip(self) -> float:
        """Gives the clip of the next round."""
        return float(
            self.clipping_norm * math.exp(self.clip_norm_lr * (self.clipped_share - self.target_clipped_quantile))
        )


def aggregate_with_noise(
    config: CentralPrivacyConfig,
    updates: Sequence[Update],
    *,
    model: SpooledWeights,
    state: bytes | None,
    round_number: int,
) -> Aggregated:
    """Gives the next global model: the mean of the clipped updates, with noise. K + 2 models in memory.

    Only trained parameters are averaged; statistics and counters stay as they are in the model.

    Args:
        config: Clip and noise.
        updates: Those admitted, in hospital-name order.
        model: The global model that was sent.
        state: What adaptive clipping gave in the last round; None in the first, and with fixed clipping.
        round_number: From 1.

    Raises:
        FederationError: Adaptive clipping cannot do with so few hospitals.
    """
    with model.opened() as tensor:
        kept = {name: tensor(name) for name in model.tensors}
    names = [name for name, described in model.tensors.items() if is_parameter(name, described.dtype)]
    current = {name: kept.pop(name) for name in names}
    messages = [_message(update, current) for update in updates]
    strategy = _wrapper(config, num_updates=len(updates), clip=clip_of(config, state))
    strategy.current_arrays = record_of(current)
    with quiet_flower(), _noise_of_the_system():
        arrays, _ = strategy.aggregate_train(round_number, messages)
    averaged = taken_from(arrays, {name: array.dtype for name, array in current.items()})
    after = None
    if isinstance(strategy, _AdaptiveClipping):
        after = pack_weights({_CLIP: np.array(strategy.next_clip())}).data
    return Aggregated({**kept, **averaged}, after)


def clip_of(config: CentralPrivacyConfig, state: bytes | None) -> float:
    """Gives the clip of a round, from what the round before gave."""
    if config.clipping_norm is not None:
        return config.clipping_norm
    if state is None:
        return config.initial_clipping_norm or INITIAL_CLIPPING_NORM
    return float(unpack_weights(np.frombuffer(state, dtype=np.uint8))[_CLIP])


def _message(update: Update, current: Weights) -> Message:
    """An update as Flower's wrappers take it; each counts as one image, so that all weigh the same."""
    with update.weights.opened() as tensor:
        arrays = {name: tensor(name) for name in current}
    if not any(np.linalg.norm(np.subtract(array, current[name])) for name, array in arrays.items()):
        # They divide by an update's norm: one that moves nothing moves a single weight by next to nothing.
        name = next(name for name, array in arrays.items() if array.size)
        moved = np.array(arrays[name], dtype=arrays[name].dtype)
        first = float(moved.flat[0])
        moved.flat[0] = first + max(abs(first) * 2.0**-20, 1e-9)
        arrays[name] = moved
    return message_of(arrays, num_images=1)


def _wrapper(config: CentralPrivacyConfig, *, num_updates: int, clip: float) -> Any:
    if config.clipping == "fixed":
        return DifferentialPrivacyServerSideFixedClipping(FedAvg(), config.noise_multiplier, clip, num_updates)
    quantile, rate = config.target_clipped_quantile, config.clip_norm_lr
    try:
        return _AdaptiveClipping(
            FedAvg(),
            config.noise_multiplier,
            num_updates,
            initial_clipping_norm=clip,
            target_clipped_quantile=TARGET_CLIPPED_QUANTILE if quantile is None else quantile,
            clip_norm_lr=CLIP_NORM_LR if rate is None else rate,
            clipped_count_stddev=config.clipped_count_stddev,
        )
    except ValueError as error:
        noise_of_count = config.clipped_count_stddev or num_updates / 20  # Flower's
        raise FederationError(
            f"central_privacy.noise_multiplier is {config.noise_multiplier:g}, and must be below twice "
            f"clipped_count_stddev, which is {noise_of_count:g} for {counted(num_updates, 'update')}: raise "
            "clipped_count_stddev, or use clipping: fixed"
        ) from error


@contextmanager
def _noise_of_the_system() -> Iterator[None]:
    """NumPy's global generator, which Flower draws from, is seeded by the operating system; then put back."""
    before = np.random.get_state()
    np.random.seed(np.frombuffer(os.urandom(4 * _SEED_WORDS), dtype=np.uint32))
    try:
        yield
    finally:
        np.random.set_state(before)


def epsilon_of_rounds(config: CentralPrivacyConfig, num_rounds: int) -> float:
    """Gives the hospital-level ε of so many rounds; infinity where it is beyond any promise."""
    return epsilon_of([Mechanism(config.noise_multiplier, 1.0, num_rounds)], delta=config.delta)


def planned_central(
    config: CentralPrivacyConfig, federation: FederationConfig, *, num_hospitals: int, num_weights: int
) -> Event:
    """Gives what a run's central privacy will amount to, with a warning where the noise drowns the updates.

    Args:
        config: Clip and noise.
        federation: The run's.
        num_hospitals: That have joined.
        num_weights: Of the model, that are trained.

    Raises:
        FederationError: Adaptive clipping cannot do with so few hospitals.
    """
    in_round = min(num_hospitals, max(federation.min_hospitals, round(federation.fraction * num_hospitals)))
    _wrapper(config, num_updates=in_round, clip=clip_of(config, None))
    epsilon = _finite(epsilon_of_rounds(config, federation.num_rounds))
    on_each = config.noise_multiplier / in_round
    of_all = on_each * math.sqrt(num_weights)
    warning = None
    if of_all > 1.0:
        warning = (
            f"{counted(in_round, 'hospital')}, {counted(federation.num_rounds, 'round')}, "
            f"ε {epsilon_named(epsilon)}: noise of {on_each:.2g} × the clip on every weight of the average, in "
            f"all {of_all:,.0f} × as large as an update can be. Too few hospitals for noise at the centre: the model "
            "will be noise. training.privacy protects the patients of few hospitals"
        )
    return {
        "clipping": config.clipping,
        "noise_multiplier": config.noise_multiplier,
        "delta": config.delta,
        "num_rounds": federation.num_rounds,
        "num_hospitals": in_round,
        "epsilon": epsilon,
        "noise_to_clip": on_each,
        "noise_norm_to_clip": of_all,
        "warning": warning,
    }


def spent_centrally(config: CentralPrivacyConfig, *, num_rounds: int, num_updates: int, clip: float) -> Event:
    """Gives what the rounds so far cost each hospital, as a round's event holds it.

    Args:
        config: Clip and noise.
        num_rounds: That are finished, this one included.
        num_updates: Averaged in this one.
        clip: Of this one.
    """
    return {
        "epsilon": _finite(epsilon_of_rounds(config, num_rounds)),
        "delta": config.delta,
        "noise_multiplier": config.noise_multiplier,
        "clipping_norm": clip,
        "num_hospitals": num_updates,
        "noise_to_clip": config.noise_multiplier / num_updates,
    }


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None
