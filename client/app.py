"""The hospital's Flower app: it joins, trains and evaluates with the code that is installed at the hospital.

Three messages: ``query`` (join: who are you, how much do you hold), ``train`` (judge the arriving model on the
validation part, then train it) and ``evaluate`` (judge only). Every random draw follows from the run's seed, the
hospital's name and the round, so a repeated message gives the same answer.
"""

import logging
from functools import lru_cache

import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from aecnn import contract
from aecnn.config import ModelConfig
from aecnn.contract import HospitalCounts, Origin, Request, RoundReport, ValidationReport, code_fingerprint
from aecnn.errors import AecnnError, ManifestError
from aecnn.evaluation.histogram import ScoreHistogram
from aecnn.evaluation.outputs import run_model
from aecnn.model.joint import JointAECNN, build_architecture
from aecnn.model.weights import load_weights, weights_of
from aecnn.training.device import resolve_device
from aecnn.training.loop import train_locally
from aecnn.training.seeds import derive_seed
from client.site import Hospital, TrainingData, hospital_of, read_training_data
from client.wire import packed_record, to_array_record, weights_in

log = logging.getLogger(__name__)


def answer_with_codes(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A mod around every handler: an error's text stays in the hospital's log, the centre gets a code."""
    try:
        return call_next(message, context)
    except ManifestError as error:
        log.error("The data cannot be read: %s", error)
        code = contract.CODE_NO_DATA
    except AecnnError as error:
        log.error("The request is refused: %s", error)
        code = contract.CODE_REFUSED
    except Exception:
        log.exception("The request failed")
        code = contract.CODE_FAILED
    return Message(Error(code, contract.CODE_TEXT[code]), reply_to=message)


app = ClientApp(mods=[answer_with_codes])


@app.query()
def join(message: Message, context: Context) -> Message:
    """Answers with the hospital's name, its code's fingerprint and how much it holds."""
    request = _request(message)
    hospital = hospital_of(context.node_config, context.run_config)
    data = _data(hospital, request)
    patients = data.loaded.manifest.table["patient"]
    targets = data.loaded.manifest.targets[data.train_rows]
    counts = HospitalCounts(
        num_train_images=data.train_rows.size,
        num_train_patients=patients.iloc[data.train_rows].nunique(),
        num_validation_images=data.validation_rows.size,
        num_validation_patients=patients.iloc[data.validation_rows].nunique(),
        num_skipped_images=len(data.loaded.skipped),
        positives=(targets == 1).sum(axis=0).tolist(),
    )
    content = _answer(hospital, request)
    content[contract.COUNTS] = ConfigRecord(counts.to_wire())
    return Message(content, reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Judges the arriving model, trains it on the hospital's images and answers with the new weights."""
    request = _request(message)
    hospital = hospital_of(context.node_config, context.run_config)
    data, plan = _data(hospital, request), request.plan
    device = _prepare_device(hospital, request)
    model = _arrived_model(message, request)
    content = _answer(hospital, request)
    _judge(model, data, request, device, content)
    report = train_locally(
        model,
        data.loaded,
        data.train_rows,
        plan,
        seed=derive_seed(request.seed, hospital.config.name, request.round),
        device=device,
    )
    content[contract.REPORT] = MetricRecord(
        RoundReport(
            num_images=data.train_rows.size,
            num_steps=report.num_steps,
            images_seen=report.images_seen,
            bce_sum=report.bce_sum,
            mse_sum=report.mse_sum,
            alive_pixels=report.alive_pixels,
            lit_pixels=report.lit_pixels,
            seconds=report.seconds,
        ).to_wire()
    )
    content[contract.WEIGHTS] = packed_record(weights_of(model))
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judges the arriving model on the hospital's validation images."""
    request = _request(message)
    hospital = hospital_of(context.node_config, context.run_config)
    data = _data(hospital, request)
    device = _prepare_device(hospital, request)
    content = _answer(hospital, request)
    _judge(_arrived_model(message, request), data, request, device, content)
    return Message(content, reply_to=message)


def _request(message: Message) -> Request:
    return Request.from_wire(dict(message.content.config_records[contract.REQUEST]))


def _data(hospital: Hospital, request: Request) -> TrainingData:
    return read_training_data(hospital, request.plan.images.size_px, request.validation_fraction)


def _prepare_device(hospital: Hospital, request: Request) -> torch.device:
    torch.set_num_threads(request.plan.training.num_threads)  # part of the result: sums depend on it in the last bit
    return resolve_device(hospital.config.device)


def _arrived_model(message: Message, request: Request) -> JointAECNN:
    plan = request.plan
    model = _resident_model(plan.model, plan.images.input_size_px)
    load_weights(model, weights_in(message.content.array_records[contract.WEIGHTS]), subject="the arriving weights")
    return model


@lru_cache(maxsize=1)
def _resident_model(config: ModelConfig, input_size_px: int) -> JointAECNN:
    """One model a process, on its device between rounds; the arriving weights replace all of its own."""
    return build_architecture(config, input_size_px=input_size_px)


def _answer(hospital: Hospital, request: Request) -> RecordDict:
    origin = Origin(hospital=hospital.config.name, round=request.round, fingerprint=code_fingerprint())
    return RecordDict({contract.ORIGIN: ConfigRecord(origin.to_wire())})


def _judge(model: JointAECNN, data: TrainingData, request: Request, device: torch.device, content: RecordDict) -> None:
    """Adds the validation sums and histogram to an answer."""
    training = request.plan.training
    outputs = run_model(
        model,
        data.loaded,
        data.validation_rows,
        request.plan.images,
        batch_size=max(training.batch_size, 32),
        device=device,
        precision=training.precision,
    )
    targets = data.loaded.manifest.targets[data.validation_rows]
    sums = ValidationReport(
        num_images=data.validation_rows.size, bce_sum=float(outputs.bce.sum()), mse_sum=float(outputs.mse.sum())
    )
    content[contract.VALIDATION] = MetricRecord(sums.to_wire())
    counts = ScoreHistogram.of(outputs.logits, targets).counts
    content[contract.HISTOGRAMS] = to_array_record({contract.SCORE_COUNTS: counts})
