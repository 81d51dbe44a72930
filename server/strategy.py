"""How the hospitals' weights become the next global model.

``fedavg`` is ours, from disk. The others are Flower's own strategies, through their public `aggregate_train`, with what
these lack: dtypes are restored, integer buffers are averaged by ours, and their state is kept for a resumed run.

The server's optimisers see the average of the parameters alone: a step beyond the average would make BatchNorm's
variances negative, so its statistics are averaged by ours.

================ ======================================================= ===========================================
strategy         rule                                                    models in memory, for K updates
================ ======================================================= ===========================================
``fedavg``       McMahan et al. 2017                                     3, whatever K
``fedavgm``      Hsu et al. 2019: momentum on the average's step         6, whatever K; keeps 1 from round to round
``fedadam``      Reddi et al. 2021                                       9, whatever K; keeps 2
``fedyogi``      Reddi et al. 2021                                       9, whatever K; keeps 2
``fedadagrad``   Reddi et al. 2021                                       9, whatever K; keeps 2
``fedmedian``    Yin et al. 2018: the median of each weight              K + 2
``fedtrimmedavg`` Yin et al. 2018: the mean without the extremes         K + 2
``krum``         Blanchard et al. 2017: the update nearest to the others 2 K + 2
================ ======================================================= ===========================================
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    Krum,
)

from aecnn.config import StrategyConfig
from aecnn.errors import FederationError
from aecnn.model.weights import Weights, pack_weights, unpack_weights
from server.average import Update, federated_average
from server.spool import SpooledWeights

MOMENTUM = 0.9  # of fedavgm, where server.yaml gives none (Hsu et al.)
LEARNING_RATE = 0.1  # of fedadam, fedyogi and fedadagrad (Flower's)
TRIMMED_FRACTION = 0.2
_NUM_EXAMPLES = "num-examples"
_STATISTICS = (".running_mean", ".running_var")


@dataclass(frozen=True)
class Aggregated:
    """The next global model, and what the strategy must be given in the next round."""

    weights: Weights
    state: memoryview | None  # a safetensors file


def aggregate(
    config: StrategyConfig,
    updates: Sequence[Update],
    *,
    model: SpooledWeights,
    state: bytes | None,
    round_number: int,
) -> Aggregated:
    """Gives the next global model.

    Args:
        config: The strategy.
        updates: Those admitted, in hospital-name order.
        model: The global model that was sent.
        state: What the strategy gave in the last round; None in the first.
        round_number: From 1.

    Raises:
        FederationError: The strategy cannot do with these updates.
    """
    if config.name == "fedavg":
        return Aggregated(federated_average(updates), None)
    try:
        with quiet_flower():
            if config.name in ("fedavgm", "fedadam", "fedyogi", "fedadagrad"):
                return _stepped(config, updates, model=model, state=state, round_number=round_number)
            return Aggregated(_chosen(config, updates, round_number), None)
    except AggregationError as error:
        raise FederationError(f"strategy {config.name!r} cannot aggregate {len(updates)} updates: {error}") from error


def _stepped(
    config: StrategyConfig,
    updates: Sequence[Update],
    *,
    model: SpooledWeights,
    state: bytes | None,
    round_number: int,
) -> Aggregated:
    """The server takes an optimiser's step from the model towards the average."""
    averaged = federated_average(updates)
    names = [name for name, tensor in model.tensors.items() if is_parameter(name, tensor.dtype)]
    dtypes = {name: averaged[name].dtype for name in names}
    with model.opened() as tensor:
        current = {name: tensor(name) for name in names}
    strategy = _optimiser(config)
    kept = {} if state is None else unpack_weights(np.frombuffer(state, dtype=np.uint8))
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = record_of(current)
        strategy.momentum_vector = [kept[name] for name in names] if kept else None
    else:
        strategy.current_arrays = current
        strategy.m_t = {name: kept[f"m/{name}"] for name in names} if kept else None
        strategy.v_t = {name: kept[f"v/{name}"] for name in names} if kept else None
    one = [message_of({name: averaged.pop(name) for name in names}, num_images=1)]
    arrays, _ = strategy.aggregate_train(round_number, one)
    stepped = taken_from(arrays, dtypes)
    if isinstance(strategy, FedAvgM):
        vector = strategy.momentum_vector
        after = {} if vector is None else dict(zip(names, vector, strict=True))
    else:
        after = {f"m/{name}": strategy.m_t[name] for name in names} | {
            f"v/{name}": strategy.v_t[name] for name in names
        }
    return Aggregated({**averaged, **stepped}, pack_weights(after).data if after else None)


def _chosen(config: StrategyConfig, updates: Sequence[Update], round_number: int) -> Weights:
    """Median, trimmed mean or one of the updates; integer buffers are averaged."""
    tensors = updates[0].weights.tensors
    dtypes = {name: np.dtype(tensor.dtype) for name, tensor in tensors.items() if _is_float(tensor.dtype)}
    counters = federated_average(updates, wanted=lambda name: name not in dtypes)
    strategy: FedAvg
    match config.name:
        case "fedmedian":
            strategy = FedMedian()
        case "fedtrimmedavg":
            strategy = FedTrimmedAvg(beta=config.trimmed_fraction or TRIMMED_FRACTION)
        case _:
            strategy = Krum(num_malicious_nodes=config.num_malicious or 0)
    messages = []
    for update in updates:
        with update.weights.opened() as tensor:
            messages.append(message_of({name: tensor(name) for name in dtypes}, num_images=update.num_images))
    arrays, _ = strategy.aggregate_train(round_number, messages)
    return {**counters, **taken_from(arrays, dtypes)}


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Flower logs how many results it was handed: for an optimiser that is one, the average."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _optimiser(config: StrategyConfig) -> Any:
    rate = config.server_learning_rate
    match config.name:
        case "fedavgm":
            momentum = MOMENTUM if config.server_momentum is None else config.server_momentum
            return FedAvgM(server_learning_rate=1.0 if rate is None else rate, server_momentum=momentum)
        case "fedadam":
            return FedAdam(eta=rate or LEARNING_RATE)
        case "fedyogi":
            return FedYogi(eta=rate or LEARNING_RATE)
        case _:
            return FedAdagrad(eta=rate or LEARNING_RATE)


def message_of(weights: Mapping[str, Any], *, num_images: int) -> Message:
    """Gives an update as Flower's strategies take it."""
    content = RecordDict({"arrays": record_of(weights), "metrics": MetricRecord({_NUM_EXAMPLES: num_images})})
    return Message(content, 0, MessageType.TRAIN)


def record_of(weights: Mapping[str, Any]) -> ArrayRecord:
    """Gives named arrays as Flower's strategies take them."""
    return ArrayRecord({name: Array(array) for name, array in weights.items()})


def taken_from(arrays: ArrayRecord | None, dtypes: Mapping[str, np.dtype[np.generic]]) -> Weights:
    """Gives what a strategy answered, in the model's dtypes.

    Raises:
        FederationError: It answered nothing.
    """
    if arrays is None:
        raise FederationError("the strategy gave no weights")
    return {name: np.asarray(arrays.pop(name).numpy()).astype(dtype) for name, dtype in dtypes.items()}


def _is_float(dtype: str) -> bool:
    return dtype.startswith("float")


def is_parameter(name: str, dtype: str) -> bool:
    """Whether a tensor is trained: no counter, and no statistic of batches."""
    return _is_float(dtype) and not name.endswith(_STATISTICS)
