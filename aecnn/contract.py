"""What the centre and a hospital may say to each other, as plain data; Flower's types are made from it at either end.

Only the records marked ``from`` leave a hospital: counts, sums over images, histograms and weights. Keys are
kebab-case on the wire. A message holds at most these records:

========== ============================== ===========================================================
direction  record                         content
========== ============================== ===========================================================
to         ``request``                    `Request`: run, round, seed, plan as JSON, validation share
to         ``weights``                    the global model's named arrays, packed
to         ``pooled``                     for an interval: where all hospitals' images are taken to lie, float64
to         ``files``                      at the end: the released model, report and model card, as bytes
from       ``origin``                     `Origin`: hospital, round and code fingerprint
from       ``audit``                      `AuditHead`: length and head of the hospital's audit log
from       ``counts``                     `HospitalCounts`, with each joining
from       ``report``                     `RoundReport`: sums over the images trained on
from       ``validation``                 `ValidationReport`: sums over the validation images
from       ``histograms``                 the validation scores' histogram, int32 [14, 2, bins], fine or floored; with
                                          privacy noised, int64 on a coarser grid; each under a name of its own
from       ``placements``                 `PlacementReport`: sums over the validation patients
from       ``weights``                    the locally trained model's named arrays, packed
========== ============================== ===========================================================

Five message types ask for an answer: ``query`` (join: origin, counts), ``train`` (origin, report, weights, validation,
histograms), ``evaluate`` (origin, validation, histograms), ``query.placements`` (once a run, about the released model:
origin, placements) and ``query.deliver`` (origin); each answer holds ``audit``, too. Packed weights are one array
``packed`` of uint8 that holds a safetensors file: Flower moves each array by itself, in calls that cost more than
their bytes.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from aecnn.config import HOSPITAL_NAME, Plan, validate_config
from aecnn.errors import ConfigError, FederationError
from aecnn.findings import NUM_FINDINGS
from aecnn.strict_model import StrictModel

WEIGHTS, REQUEST, ORIGIN, COUNTS = "weights", "request", "origin", "counts"
REPORT, VALIDATION, HISTOGRAMS = "report", "validation", "histograms"
AUDIT, FILES = "audit", "files"
POOLED, PLACEMENTS = "pooled", "placements"
SCORE_COUNTS = "score-counts"  # the one array of the histograms record: exact counts
FLOORED_COUNTS = "floored-counts"  # or this: exact counts of ranges of bins that pass the hospital's floor of patients
NOISED_COUNTS = "noised-counts"  # or this, under differential privacy: counts with noise, some of them negative
PACKED = "packed"  # the one array of the weights record
POOLED_IMAGES = "pooled-images"  # the one array of the pooled record

JOIN, TRAIN, EVALUATE, DELIVER = "query", "train", "evaluate", "query.deliver"  # message types
PLACE = "query.placements"
RECORDS_OF: dict[str, tuple[str, ...]] = {  # what an answer to each may hold; nothing else leaves a hospital
    JOIN: (ORIGIN, AUDIT, COUNTS),
    TRAIN: (ORIGIN, AUDIT, REPORT, VALIDATION, HISTOGRAMS, WEIGHTS),
    EVALUATE: (ORIGIN, AUDIT, VALIDATION, HISTOGRAMS),
    PLACE: (ORIGIN, AUDIT, PLACEMENTS),
    DELIVER: (ORIGIN, AUDIT),
}
RELEASED_MODEL, RELEASED_REPORT, RELEASED_CARD = "global.safetensors", "report.html", "model_card.md"
DELIVERED_FILES = (RELEASED_MODEL, RELEASED_REPORT, RELEASED_CARD)

# Codes a hospital answers with when it cannot do as asked; the reason stays in its own log.
CODE_FAILED = 100
CODE_REFUSED = 101
CODE_NO_DATA = 102
CODE_AGAINST_POLICY = 103
CODE_WITHHELD = 104
CODE_LATER = 105
CODE_WITHDRAWN = 106
CODE_BUDGET = 107
FIRST_CODE = CODE_FAILED  # smaller ones are Flower's own: the task or its node failed, not the hospital's code
CODE_TEXT = {
    CODE_FAILED: "the hospital's training failed; its own log says why",
    CODE_REFUSED: "the hospital refused the request; its own log says why",
    CODE_NO_DATA: "the hospital could not read its data; its own log says why",
    CODE_AGAINST_POLICY: "the hospital's site file does not allow what was asked; its own log says what",
    CODE_WITHHELD: "the hospital's guard withheld the answer; its own log says why",
    CODE_LATER: "the hospital pauses, or this is outside its working hours",
    CODE_WITHDRAWN: "the hospital has withdrawn from the run",
    CODE_BUDGET: "the hospital's privacy budget does not allow another round",
}

# Codes that the centre tells a hospital whose last update it did not average; 0: it did, or there was none.
REFUSED_FORM, REFUSED_VALUES, REFUSED_COUNTS, REFUSED_NORM, REFUSED_ORIGIN = 201, 202, 203, 204, 205
REFUSAL_TEXT = {
    REFUSED_FORM: "its tensors or records were not those of the plan",
    REFUSED_VALUES: "it held values that no training gives, such as NaN",
    REFUSED_COUNTS: "it claimed more images than were declared",
    REFUSED_NORM: "it moved the weights much further than the other hospitals' updates",
    REFUSED_ORIGIN: "it answered another round, or came from other code",
}


MAX_CHARACTERS = 200  # of a sentence that may hold what a stranger chose
MAX_TOLD, MAX_NAME = 5, 60  # of a stranger's names, and characters of each
_ROUNDING = 1e-9  # of sums of squares, relative and absolute


def told(text: str) -> str:
    """Gives a text that may hold what a stranger chose, short and without control characters."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: MAX_CHARACTERS + 1])
    return shown if len(shown) <= MAX_CHARACTERS else f"{shown[: MAX_CHARACTERS - 1]}…"


def told_names(names: Iterable[object]) -> str:
    """Gives the first few of a stranger's names, quoted."""
    found = [str(name) for name in names]
    shown = [repr(name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…") for name in found[:MAX_TOLD]]
    more = f" and {len(found) - MAX_TOLD} more" if len(found) > MAX_TOLD else ""
    return ", ".join(shown) + more


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class WireModel(StrictModel):
    """A record of scalars with kebab-case keys; unknown and missing keys are refused on arrival."""

    model_config = ConfigDict(alias_generator=_kebab, populate_by_name=True)

    def to_wire(self) -> dict[str, Any]:
        """Gives the record's keys and values; what is None is absent."""
        return self.model_dump(by_alias=True, mode="python", exclude_none=True)

    @classmethod
    def from_wire(cls, record: object) -> Self:
        """Reads a record that arrived.

        Raises:
            ConfigError: A key is missing, unknown or out of bounds; all faults at once.
        """
        subject = f"the record {cls.__name__}"
        known = {_kebab(name) for name in cls.model_fields}
        unknown = [key for key in record if key not in known] if isinstance(record, Mapping) else []
        if unknown:  # before anything that costs more with every key, such as looking for the one that was meant
            raise ConfigError(subject, [f"{told_names(unknown)}: no such key"])
        return validate_config(record, cls, subject=subject)


class Request(WireModel):
    """What the centre asks of a hospital in one round (round 0: before the first)."""

    run: str = Field(pattern=HOSPITAL_NAME)  # its name: letters, digits, ".", "_" and "-"
    run_id: str = Field(pattern=r"^[0-9a-f]{16}$")  # of this one run: with the round, it names a request
    round: int = Field(ge=0)
    seed: int = Field(ge=0)
    plan_json: str
    validation_fraction: float = Field(gt=0.0, lt=1.0)
    last_refusal: int = Field(default=0, ge=0)  # why this hospital's last update was not averaged (`REFUSAL_TEXT`)

    @property
    def plan(self) -> Plan:
        """The plan, validated.

        Raises:
            ConfigError: It is not a plan this installation knows.
        """
        try:
            document = json.loads(self.plan_json)
        except json.JSONDecodeError as error:
            raise FederationError(f"the request's plan is not JSON ({error})") from error
        return validate_config(document, Plan, subject="the request's plan")


class Origin(WireModel):
    """Who answers, to which round, and with which code."""

    hospital: str = Field(pattern=HOSPITAL_NAME)
    round: int = Field(ge=0)
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")


class AuditHead(WireModel):
    """How far a hospital's audit log has come: the centre can tell if it was cut or rewritten since."""

    length: int = Field(ge=1)
    head: str = Field(pattern=r"^[0-9a-f]{64}$")


class HospitalCounts(WireModel):
    """How much a hospital holds; `positives` counts training images in the order of the findings, where it is told."""

    num_train_images: int = Field(ge=0)
    num_train_patients: int = Field(ge=0)
    num_validation_images: int = Field(ge=0)
    num_validation_patients: int = Field(ge=0)
    num_skipped_images: int = Field(ge=0)
    positives: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None, min_length=NUM_FINDINGS, max_length=NUM_FINDINGS
    )

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if self.positives is not None and max(self.positives) > self.num_train_images:
            raise ValueError(f"{max(self.positives)} positive images among {self.num_train_images} training images")
        for patients, images in (
            (self.num_train_patients, self.num_train_images),
            (self.num_validation_patients, self.num_validation_images),
        ):
            if patients > images:
                raise ValueError(f"{patients} patients with {images} images")
        return self


class RoundReport(WireModel):
    """Sums over one local training; those of losses and pixels only where the hospital tells them.

    Under differential privacy what depends on the data is absent, and the privacy that the round cost is told: from
    `noise_multiplier`, `sample_rate` and `num_steps` the centre composes ε over the rounds by the same accountant.
    """

    num_images: int = Field(
        ge=1
    )  # training images held: the FedAvg weight; with privacy a value the site file declares
    num_steps: int = Field(ge=0)
    images_seen: int | None = Field(default=None, ge=0)
    bce_sum: float | None = Field(default=None, ge=0.0)
    mse_sum: float | None = Field(default=None, ge=0.0)
    alive_pixels: int | None = Field(default=None, ge=0)
    lit_pixels: int | None = Field(default=None, ge=0)
    seconds: float | None = Field(default=None, ge=0.0)
    noise_multiplier: float | None = Field(default=None, gt=0.0)
    sample_rate: float | None = Field(default=None, gt=0.0, le=1.0)
    delta: float | None = Field(default=None, gt=0.0, lt=1.0)
    epsilon: float | None = Field(default=None, ge=0.0)  # of this run so far, by the hospital's ledger where it has one

    @model_validator(mode="after")
    def _privacy_is_whole(self) -> Self:
        told = [value is not None for value in (self.noise_multiplier, self.sample_rate, self.delta)]
        if any(told) and not all(told):
            raise ValueError("noise-multiplier, sample-rate and delta go together")
        if all(told) and any(value is not None for value in (self.images_seen, self.bce_sum, self.seconds)):
            raise ValueError("under differential privacy images-seen, losses and seconds are absent")
        return self

    @property
    def is_private(self) -> bool:
        """Whether the training was differentially private."""
        return self.noise_multiplier is not None


class ValidationReport(WireModel):
    """Sums over the validation images, of the global model as it arrived."""

    num_images: int = Field(ge=0)
    bce_sum: float = Field(ge=0.0)
    mse_sum: float = Field(ge=0.0)


_Sums = Annotated[list[float], Field(min_length=NUM_FINDINGS, max_length=NUM_FINDINGS)]
_Sizes = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=NUM_FINDINGS, max_length=NUM_FINDINGS)]


class PlacementReport(WireModel):
    """Sums over the validation patients, by finding in their order (`aecnn.evaluation.placements.PlacementSums`)."""

    positive_squares: _Sums
    negative_squares: _Sums
    products: _Sums
    positive_patients: _Sizes
    negative_patients: _Sizes
    patients: _Sizes
    macro_square: float = Field(ge=0.0)
    num_patients: int = Field(ge=0)

    @model_validator(mode="after")
    def _sums_agree(self) -> Self:
        if min(self.positive_squares + self.negative_squares) < 0.0:
            raise ValueError("a sum of squares is negative")
        for a, b, product in zip(self.positive_squares, self.negative_squares, self.products, strict=True):
            if product * product > a * b * (1.0 + _ROUNDING) + _ROUNDING:  # Cauchy and Schwarz
                raise ValueError(f"a sum of products is {product:g}, and those of the squares are {a:g} and {b:g}")
        for positive, negative, either in zip(
            self.positive_patients, self.negative_patients, self.patients, strict=True
        ):
            if not max(positive, negative) <= either <= min(positive + negative, self.num_patients):
                raise ValueError(f"{positive} and {negative} patients by class, {either} of either")
        return self


def exchange_schema() -> dict[str, dict[str, tuple[str, ...]]]:
    """Gives what an answer to each kind of message may hold: its records, and each record's keys or arrays."""
    keys = {
        record: tuple(_kebab(name) for name in model.model_fields)
        for record, model in (
            (ORIGIN, Origin),
            (AUDIT, AuditHead),
            (COUNTS, HospitalCounts),
            (REPORT, RoundReport),
            (VALIDATION, ValidationReport),
            (PLACEMENTS, PlacementReport),
        )
    }
    keys |= {HISTOGRAMS: (SCORE_COUNTS, FLOORED_COUNTS, NOISED_COUNTS), WEIGHTS: (PACKED,)}
    return {message: {record: keys[record] for record in records} for message, records in RECORDS_OF.items()}


@cache
def code_fingerprint() -> str:
    """Gives the SHA-256 of the installed code that a run depends on at either end, as 64 hex digits.

    Two installations with one fingerprint run the same model, training and messages. It is taken once a process: what
    counts is the code that was loaded.
    """
    digest = hashlib.sha256()
    for package in ("aecnn", "client", "server"):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise FederationError(f"the package {package!r} is not installed: reinstall this distribution")
        root = Path(spec.submodule_search_locations[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{package}/{path.relative_to(root).as_posix()}\0".encode())
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()
