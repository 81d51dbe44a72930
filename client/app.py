"""The hospital's Flower app: it joins, trains, evaluates and takes the released model with the code installed here.

Five messages: ``query`` (join: who are you, how much do you hold), ``train`` (judge the arriving model on the
validation part, then train it), ``evaluate`` (judge only), ``query.placements`` (sums by patient of the released
model's scores, for intervals) and ``query.deliver`` (keep the released files). Every random draw follows from the run's
seed, the hospital's name and the round, so a repeated message gives the same answer; those of differential privacy come
from the operating system.
What may be asked is `client.policy`'s to say, and what may leave `client.guard`'s: both stand around every handler.
"""

import logging
import os
from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from aecnn import contract
from aecnn.config import ModelConfig
from aecnn.contract import HospitalCounts, Request, RoundReport, ValidationReport
from aecnn.evaluation.histogram import Bins, bins_of
from aecnn.evaluation.noised import noised_counts
from aecnn.evaluation.outputs import Outputs, run_model
from aecnn.model.joint import JointAECNN, build_architecture
from aecnn.model.weights import load_weights, weights_of
from aecnn.training.device import resolve_device
from aecnn.training.loop import TrainingReport, train_locally
from aecnn.training.privacy.entropy import SystemEntropy
from aecnn.training.privacy.promise import Promise
from aecnn.training.resume import LocalCheckpoint
from aecnn.training.seeds import derive_seed
from client.delivery import keep_released, released_folder
from client.deployment import Deployment, deployment_of
from client.guard import guard_egress
from client.judged import JudgedModels, judged_bins, model_in
from client.judging import histogram_name, histogram_told, placements_told, pooled_images_in, validation_images
from client.policy import policy_of, refuse_against_policy
from client.privacy import declared_counts, noised_evaluation, private_report, promise_at
from client.progress import Progress
from client.site import Hospital, PolicyConfig, TrainingData, hospital_of, read_training_data
from client.wire import bytes_in, packed_record, request_of, to_array_record, weights_in

log = logging.getLogger(__name__)

MIN_JUDGING_BATCH = 32  # without gradients there is room for more images than in training

app = ClientApp(mods=[guard_egress, refuse_against_policy])


@app.query()
def join(message: Message, context: Context) -> Message:
    """Answers with how much the hospital holds."""
    request = request_of(message)
    hospital = hospital_of(context.node_config, context.run_config)
    data = _data(hospital, request)
    promise = promise_at(hospital, data, request)
    counts = _counts(data) if promise is None else declared_counts(promise)
    return Message(RecordDict({contract.COUNTS: ConfigRecord(counts.to_wire())}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Judges the arriving model, trains it on the hospital's images and answers with the new weights."""
    request = request_of(message)
    hospital = hospital_of(context.node_config, context.run_config)
    data, deployment = _data(hospital, request), deployment_of(context.node_config)
    device = _prepare_device(hospital, request)
    model, progress = _arrived_model(message, request), Progress.of(deployment, request)
    content = RecordDict()
    promise = promise_at(hospital, data, request)
    progress.tell("evaluating")
    policy, keep = policy_of(hospital.config.policy), _keeping(message, data, deployment)
    _judge(model, data, request, device, content, policy=policy, promise=promise, kind=contract.TRAIN, keep=keep)
    report = train_locally(
        model,
        data.loaded,
        data.train_rows,
        request.plan,
        seed=derive_seed(request.seed, hospital.config.name, request.round),
        device=device,
        promise=promise,
        checkpoint=None if deployment is None else LocalCheckpoint(deployment.paths.checkpoint, key=deployment.request),
        on_step=progress.tell_step,
    )
    told = (
        _round_report(report, data)
        if promise is None
        else private_report(promise, epsilon=None if deployment is None else deployment.epsilon)
    )
    content[contract.REPORT] = MetricRecord(told.to_wire())
    content[contract.WEIGHTS] = packed_record(weights_of(model))
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judges the arriving model on the hospital's validation images."""
    request = request_of(message)
    hospital = hospital_of(context.node_config, context.run_config)
    data, deployment = _data(hospital, request), deployment_of(context.node_config)
    device = _prepare_device(hospital, request)
    Progress.of(deployment, request).tell("evaluating")
    content = RecordDict()
    promise = promise_at(hospital, data, request)
    model = _arrived_model(message, request)
    policy, keep = policy_of(hospital.config.policy), _keeping(message, data, deployment)
    _judge(model, data, request, device, content, policy=policy, promise=promise, kind=contract.EVALUATE, keep=keep)
    return Message(content, reply_to=message)


@app.query("placements")
def place(message: Message, context: Context) -> Message:
    """Answers with sums by patient of where the released model's scores lie among those of all hospitals."""
    request, pooled_images = request_of(message), pooled_images_in(message)
    hospital = hospital_of(context.node_config, context.run_config)
    data, deployment = _data(hospital, request), deployment_of(context.node_config)
    Progress.of(deployment, request).tell("evaluating")
    model = _arrived_model(message, request)
    if deployment is None:  # a simulated hospital keeps nothing: in one process the scores come out the same
        device = _prepare_device(hospital, request)
        bins = bins_of(_outputs(model, data, request, device, batch_size=_judging_batch_size(request)).logits)
    else:
        bins = judged_bins(message, data, deployment)
    report = placements_told(bins, data, policy_of(hospital.config.policy), pooled_images=pooled_images)
    return Message(RecordDict({contract.PLACEMENTS: MetricRecord(report.to_wire())}), reply_to=message)


@app.query("deliver")
def deliver(message: Message, context: Context) -> Message:
    """Keeps the released model, report and model card, where the site file wants them."""
    request, deployment = request_of(message), deployment_of(context.node_config)
    policy = hospital_of(context.node_config, context.run_config).config.policy
    if deployment is not None and policy is not None and policy.accept.released_files:
        files = bytes_in(message.content.array_records[contract.FILES])
        folder = released_folder(deployment.paths.models, request)
        keep_released(folder, files, model=request.plan.model)
    return Message(RecordDict(), reply_to=message)


def _data(hospital: Hospital, request: Request) -> TrainingData:
    return read_training_data(hospital, request.plan.images.size_px, request.validation_fraction)


def _prepare_device(hospital: Hospital, request: Request) -> torch.device:
    torch.set_num_threads(_threads(request.plan.training.num_threads))  # sums depend on it in the last bit
    return resolve_device(hospital.config.device)


@cache
def _threads(wanted: int) -> int:
    """As many threads as the plan says, or as this machine has processors."""
    most = os.cpu_count() or 1
    if wanted > most:
        log.warning("The plan has %d threads, and this machine %d processors: it takes %d", wanted, most, most)
    return min(wanted, most)


def _arrived_model(message: Message, request: Request) -> JointAECNN:
    plan = request.plan
    model = _resident_model(plan.model, plan.images.input_size_px)
    load_weights(model, weights_in(message.content.array_records[contract.WEIGHTS]), subject="the arriving weights")
    return model


@lru_cache(maxsize=1)
def _resident_model(config: ModelConfig, input_size_px: int) -> JointAECNN:
    """One model a process, on its device between rounds; the arriving weights replace all of its own."""
    return build_architecture(config, input_size_px=input_size_px)


def _counts(data: TrainingData) -> HospitalCounts:
    patients = data.loaded.manifest.table["patient"]
    targets = data.loaded.manifest.targets[data.train_rows]
    return HospitalCounts(
        num_train_images=data.train_rows.size,
        num_train_patients=patients.iloc[data.train_rows].nunique(),
        num_validation_images=data.validation_rows.size,
        num_validation_patients=patients.iloc[data.validation_rows].nunique(),
        num_skipped_images=len(data.loaded.skipped),
        positives=(targets == 1).sum(axis=0).tolist(),
    )


def _round_report(report: TrainingReport, data: TrainingData) -> RoundReport:
    return RoundReport(
        num_images=data.train_rows.size,
        num_steps=report.num_steps,
        images_seen=report.images_seen,
        bce_sum=report.bce_sum,
        mse_sum=report.mse_sum,
        alive_pixels=report.alive_pixels,
        lit_pixels=report.lit_pixels,
        seconds=report.seconds,
    )


def _judge(
    model: JointAECNN,
    data: TrainingData,
    request: Request,
    device: torch.device,
    content: RecordDict,
    *,
    policy: PolicyConfig,
    promise: Promise | None,
    kind: str,
    keep: Callable[[Bins], None],
) -> None:
    """Adds the validation sums and histogram to an answer; under privacy the noised histogram, or nothing."""
    if promise is not None:
        evaluation, noise = noised_evaluation(request, kind), promise.evaluation
        if evaluation is None or noise is None:
            return
        noised = noised_counts(
            _outputs(model, data, request, device, batch_size=1).logits,  # who else is in a batch may change a last bit
            data.loaded.manifest.targets[data.validation_rows],
            data.loaded.manifest.table["patient"].iloc[data.validation_rows].tolist(),
            images_per_patient=evaluation.images_per_patient,
            noise_multiplier=noise.noise_multiplier,
            entropy=SystemEntropy(),
        )
        content[contract.HISTOGRAMS] = to_array_record({contract.NOISED_COUNTS: noised})
        return
    outputs = _outputs(model, data, request, device, batch_size=_judging_batch_size(request))
    sums = ValidationReport(
        num_images=data.validation_rows.size, bce_sum=float(outputs.bce.sum()), mse_sum=float(outputs.mse.sum())
    )
    content[contract.VALIDATION] = MetricRecord(sums.to_wire())
    bins = bins_of(outputs.logits)
    keep(bins)
    counts = histogram_told(bins, data, policy).counts.astype(np.int32)
    content[contract.HISTOGRAMS] = to_array_record({histogram_name(policy): counts})


def _keeping(message: Message, data: TrainingData, deployment: Deployment | None) -> Callable[[Bins], None]:
    """What keeps at home where the arriving model's scores lie, for sums by patient."""
    if deployment is None:
        return lambda bins: None
    run_id, model = request_of(message).run_id, model_in(message)
    return lambda bins: JudgedModels(deployment.paths.judged).keep(run_id, model, validation_images(data), bins)


def _judging_batch_size(request: Request) -> int:
    return max(request.plan.training.batch_size, MIN_JUDGING_BATCH)


def _outputs(
    model: JointAECNN, data: TrainingData, request: Request, device: torch.device, *, batch_size: int
) -> Outputs:
    """Runs the model on the validation images, in smaller batches where the GPU's memory asks for it."""
    while True:
        try:
            return run_model(
                model,
                data.loaded,
                data.validation_rows,
                request.plan.images,
                batch_size=batch_size,
                device=device,
                precision=request.plan.training.precision,
            )
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
        batch_size //= 2
        log.warning("The GPU's memory is too small: validation goes on with %d images at a time", batch_size)
        torch.cuda.empty_cache()
