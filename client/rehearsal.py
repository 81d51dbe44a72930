"""A tiny round at the hospital alone, to see what would leave: the installed app and its guard, no centre.

It runs on some of the hospital's patients in a folder of its own, so that neither the audit log nor the kept replies
of the real client know of it.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from aecnn import contract
from aecnn.config import FederationConfig, ImagesConfig, ModelConfig, Plan, TrainingConfig, load_config
from aecnn.contract import Request
from aecnn.evaluation.histogram import ScoreHistogram
from aecnn.evaluation.pooled import PooledScores
from aecnn.model.joint import build_model
from aecnn.model.weights import Weights, weights_of
from aecnn.privacy_config import EvaluationPrivacyConfig, PrivacyConfig
from aecnn.training.device import resolve_device
from aecnn.training.loop import train_locally
from aecnn.training.privacy.promise import promise_of
from client.app import app
from client.desk import Desk
from client.guard import ANSWERED
from client.inventory import inventory_of
from client.ledger_store import create_ledger
from client.paths import SitePaths
from client.policy import check_batches
from client.refusal import RefusalError
from client.site import SiteConfig, read_hospital, read_training_data
from client.wire import packed_record, to_array_record

SPEED_STEPS, WARM_UP_STEPS = 10, 2
GPU_SIZE_PX, CPU_SIZE_PX = 256, 128
MIN_PATIENTS = 40  # of the rehearsal, where the hospital has so many
BATCH_SIZE = 8
_SAMPLE_RATE = 0.2  # of the rehearsal's patients, where the site requires privacy
_VALIDATION_FRACTION = float(FederationConfig.model_fields["validation_fraction"].default)
_NODE_ID, _CENTRE_ID = 2, 1


@dataclass(frozen=True)
class Speed:
    """How fast this machine trains the rehearsal's model."""

    images_per_s: float
    device: str
    plan: Plan


def rehearsal_plan(config: SiteConfig, *, steps: int) -> Plan:
    """Gives the model to rehearse with: the federation's usual one at a small size, or the first the site accepts.

    Where the site requires differential privacy, so does the plan, and with noised histograms if it lets these leave.
    """
    accepted = config.policy.accept.backbones if config.policy else None
    is_gpu = resolve_device(config.device).type == "cuda"
    is_private = config.policy is not None and config.policy.accept.requires_privacy
    noise = max(1.0, (config.policy.privacy.min_noise_multiplier if config.policy else None) or 0.0)
    privacy = PrivacyConfig(
        noise_multiplier=noise, sample_rate=_SAMPLE_RATE, total_steps=steps, evaluation=_evaluation(config)
    )
    model = ModelConfig(normalisation="group" if is_private else "batch")
    return Plan(
        images=ImagesConfig(size_px=GPU_SIZE_PX if is_gpu else CPU_SIZE_PX),
        model=model.model_copy(update={"backbone": accepted[0]}) if accepted else model,
        training=TrainingConfig(
            batch_size=BATCH_SIZE,
            local_steps=steps,
            num_threads=os.cpu_count() or 1,
            privacy=privacy if is_private else None,
        ),
    )


def _evaluation(config: SiteConfig) -> EvaluationPrivacyConfig | None:
    """One evaluation with noise, where the site file allows any."""
    epsilon = config.policy.privacy.max_evaluation_epsilon if config.policy else None
    return EvaluationPrivacyConfig(epsilon=epsilon, every_rounds=1, total_evaluations=1) if epsilon else None


@contextmanager
def rehearsal_site(paths: SitePaths) -> Iterator[Path]:
    """Gives a site file like the hospital's, of some of its patients, in a folder that is removed afterwards."""
    config = load_config(paths.site, SiteConfig)
    patients = read_hospital(paths.site).manifest.patients
    floor = config.policy.min_patients if config.policy else 0
    most = max(MIN_PATIENTS, round(2 * floor / validation_fraction(config)))  # enough to train, and to validate
    folder = paths.state / "rehearsal"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "state").mkdir(parents=True, mode=0o700)
    try:
        (folder / "patients.txt").write_text("\n".join(patients[:most]) + "\n", encoding="utf-8")
        document = config.model_dump(mode="json")
        document["data"]["patients_file"] = "patients.txt"
        if document["policy"] is not None:
            document["policy"]["working_hours"] = None  # to rehearse by day what trains by night
            document["policy"]["privacy"] |= {"ledger_folder": _ledger_for(folder, config), "max_epsilon": 1e6}
        site = folder / "site.yaml"
        site.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
        yield site
    finally:
        shutil.rmtree(folder)


def _ledger_for(folder: Path, config: SiteConfig) -> str | None:
    """A ledger of the rehearsal's own, where it needs one: nothing leaves, so the hospital's has nothing to pay."""
    if config.policy is None or not config.policy.accept.requires_privacy:
        return None
    create_ledger(folder / "ledger")
    return str(folder / "ledger")


def measure_speed(site: Path) -> Speed:
    """Times ten training steps on the rehearsal's images, after two to warm up."""
    config = load_config(site, SiteConfig)
    device = resolve_device(config.device)
    plan = rehearsal_plan(config, steps=1)
    data = read_training_data(read_hospital(site), plan.images.size_px, validation_fraction(config))
    model = build_model(plan.model, seed=0, input_size_px=plan.images.input_size_px)
    for steps in (WARM_UP_STEPS, SPEED_STEPS):
        plan = rehearsal_plan(config, steps=steps)
        torch.set_num_threads(plan.training.num_threads)
        promise = promise_of(plan, declared_patients=data.train_rows.size)
        report = train_locally(model, data.loaded, data.train_rows, plan, seed=0, device=device, promise=promise)
    return Speed(report.images_seen / report.seconds, _name_of(device, plan), plan)


def rehearse(site: Path) -> dict[str, Any]:
    """Lets the installed app answer a centre's messages, and gives what would leave as plain data.

    It joins and trains; where a histogram of its scores would leave, it is asked for sums by patient as well.
    """
    config = load_config(site, SiteConfig)
    plan = rehearsal_plan(config, steps=_enough_steps(site, config))
    weights = weights_of(build_model(plan.model, seed=0, input_size_px=plan.images.input_size_px))
    desk = Desk(SitePaths(site.parent), app)  # its own audit log and replies
    fraction = validation_fraction(config)
    join = _message(contract.JOIN, _request(plan, fraction, round_=0))
    train = _message(contract.TRAIN, _request(plan, fraction, round_=1), weights=weights)
    described, replies = [], {}
    for message in (join, train):
        replies[message.metadata.message_type] = reply = desk.answer(message)
        described.append(_described(message, reply, SitePaths(site.parent)))
    told = _histogram_in(replies[contract.TRAIN])
    if told is not None:
        place = _message(contract.PLACE, _request(plan, fraction, round_=2), weights=weights)
        place.content[contract.POOLED] = to_array_record({contract.POOLED_IMAGES: PooledScores.of(told).placed})
        described.append(_described(place, desk.answer(place), SitePaths(site.parent)))
    return {"hospital": config.name, "plan": plan.model_dump(mode="json"), "messages": described}


def _histogram_in(reply: Message) -> ScoreHistogram | None:
    """The exact histogram in an answer, fine or floored."""
    record = reply.content.get(contract.HISTOGRAMS) if reply.has_content() else None
    if not isinstance(record, ArrayRecord) or contract.NOISED_COUNTS in record:
        return None
    ((name, array),) = record.items()
    return ScoreHistogram(array.numpy().astype(np.int64), is_floored=name == contract.FLOORED_COUNTS)


def _enough_steps(site: Path, config: SiteConfig) -> int:
    """The fewest steps whose batches have as many patients as the policy wants; one pass's where none have."""
    policy, fraction, steps = config.policy, validation_fraction(config), 1
    if policy is None:
        return steps
    data = read_training_data(read_hospital(site), rehearsal_plan(config, steps=1).images.size_px, fraction)
    for steps in range(policy.min_steps, policy.min_steps + data.train_rows.size // BATCH_SIZE + 1):
        request = _request(rehearsal_plan(config, steps=steps), fraction, round_=1)
        try:
            check_batches(policy, request, data, hospital=config.name)
        except RefusalError:
            continue
        break
    return steps


def validation_fraction(config: SiteConfig) -> float:
    """Gives the share of patients to rehearse with as validation: the one the site file accepts, or a usual one."""
    accepted = config.policy.accept.validation_fraction if config.policy else None
    return accepted or _VALIDATION_FRACTION


def _described(message: Message, reply: Message, paths: SitePaths) -> dict[str, Any]:
    """An answer as plain data: every record, key and value, and of arrays their shape, type and bytes."""
    logged = json.loads(paths.audit_log.read_text(encoding="utf-8").splitlines()[-1])
    return {
        "asked": message.metadata.message_type,
        "code": reply.error.code if reply.has_error() else ANSWERED,
        "decision": logged["decision"],
        "records": {} if reply.has_error() else inventory_of(reply.content),
    }


def write_would_leave(document: dict[str, Any], path: Path) -> None:
    """Keeps it, readable by the owner alone."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)


def _name_of(device: torch.device, plan: Plan) -> str:
    if device.type != "cuda":
        return f"CPU, {plan.training.num_threads} threads"
    found = torch.cuda.get_device_properties(device)
    return f"{found.name}, {found.total_memory / 1e9:.0f} GB"


def _request(plan: Plan, validation_fraction: float, *, round_: int) -> Request:
    return Request(
        run="rehearsal",
        run_id="0" * 16,
        round=round_,
        seed=0,
        plan_json=plan.model_dump_json(),
        validation_fraction=validation_fraction,
    )


def _message(message_type: str, request: Request, *, weights: Weights | None = None) -> Message:
    content = RecordDict({contract.REQUEST: ConfigRecord(request.to_wire())})
    if weights is not None:
        content[contract.WEIGHTS] = packed_record(weights)
    # Flower reads the sender of a new message from the process's identity.
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, _CENTRE_ID
    message = Message(content, _NODE_ID, message_type)
    message.metadata.__dict__["_message_id"] = f"rehearsal-{request.round}"  # as Flower's own grids do when they send
    return message
