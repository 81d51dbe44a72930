"""Every YAML a person writes, as frozen models: unknown keys are refused and all faults are told at once.

A run's configuration has two halves. `Plan` (images, model, training) is what the centre asks each hospital to do and
travels with every message. The rest (data, partition, federation) stays where it is used.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator, model_validator

from aecnn.errors import ConfigError, UnknownFindingError
from aecnn.findings import FINDINGS, finding_index, nearest_hint
from aecnn.privacy_config import CentralPrivacyConfig, PrivacyConfig, evaluated_rounds
from aecnn.strict_model import StrictModel
from aecnn.yaml_text import read_yaml

Backbone = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "inception_v3",
]
Normalisation = Literal["batch", "group", "frozen"]
Padding = Literal["replicate", "zeros"]
Split = Literal["test", "train_val", "all"]  # of the official lists
OnUnreadable = Literal["refuse", "skip"]
Engine = Literal["inprocess", "ray"]  # of a simulation
TestCrops = Literal["centre", "ten"]
HeatmapMethod = Literal["grad-cam", "hires-cam"]
Folder = Annotated[Path, AfterValidator(lambda path: Path(os.path.abspath(path.expanduser())))]

HOSPITAL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"  # it names a folder, too
ADDRESS = r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$"
_IN_WORDS = {  # what a value that does not match should have been
    HOSPITAL_NAME: "give up to 64 letters, digits, '.', '_' and '-', a letter or digit first",
    ADDRESS: "give HOST:PORT, such as centre.example:9092",
}
_NOT_OF_DATASET = ("patients_file", "scanner", "phantom")  # keys of a data section that say how it is used, not read
DOWNSCALE = 4  # the encoder's stride: input side = 4 × latent side


class ImagesConfig(StrictModel):
    """How a radiograph becomes the model's input, and what augmentation does to it in training."""

    size_px: int = Field(default=1024, ge=16, le=4096)
    crop_size_px: int | None = Field(default=None, ge=16, le=4096)  # None: no crop. The paper: 896 of 1024
    rotation_deg: float = Field(default=0.0, ge=0.0, le=45.0)  # drawn in ± this range. The paper: 5
    horizontal_flip: bool = True
    test_crops: TestCrops = "centre"  # what a model is scored on. The paper: the mean of ten

    @property
    def input_size_px(self) -> int:
        """Side of the square the model sees, in pixels."""
        return self.crop_size_px or self.size_px

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.crop_size_px is not None and self.crop_size_px > self.size_px:
            raise ValueError(f"crop_size_px {self.crop_size_px} is larger than size_px {self.size_px}")
        if self.input_size_px % DOWNSCALE:
            raise ValueError(f"input size {self.input_size_px} px is not divisible by {DOWNSCALE}: use a multiple of 4")
        return self


class ModelConfig(StrictModel):
    """The joint AE-CNN: which classifier looks at the latent code, and how it starts."""

    backbone: Backbone = "densenet121"
    weights: Literal["none", "imagenet"] = "none"
    normalisation: Normalisation = "batch"
    train_normalisation_affine: bool = True  # `frozen` only: whether scale and shift still train
    padding: Padding = "replicate"

    @model_validator(mode="after")
    def _frozen_needs_weights(self) -> Self:
        if self.normalisation == "frozen" and self.weights == "none":
            raise ValueError(
                "normalisation 'frozen' keeps the statistics of pretrained weights, and weights is 'none': "
                "set weights: imagenet, or normalisation: group"
            )
        return self


class TrainingConfig(StrictModel):
    """Local training at one hospital in one round."""

    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(default=1e-4, gt=0.0, le=100.0)
    weight_decay: float = Field(default=1e-5, ge=0.0)
    batch_size: int = Field(default=8, ge=1)  # with privacy: images in memory at a time, and no part of the promise
    local_epochs: int | None = Field(default=None, ge=1)
    local_steps: int | None = Field(default=None, ge=1)
    bce_weight: float = Field(default=0.9, ge=0.0, le=1.0)  # λ of the paper's loss λ·BCE + (1−λ)·MSE
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    num_threads: int = Field(default=2, ge=1)
    privacy: PrivacyConfig | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.local_epochs is None) == (self.local_steps is None):
            raise ValueError("give exactly one of local_epochs and local_steps, and unset the other with null")
        if self.privacy is not None and self.local_steps is None:
            raise ValueError("privacy counts steps, whatever the data: give local_steps, and local_epochs: null")
        return self


def refuse_mixed_patients(model: ModelConfig, training: TrainingConfig) -> None:
    """Refuses privacy for a model that looks at several patients at once.

    Raises:
        ValueError: Its normalisation does.
    """
    if training.privacy is not None and model.normalisation == "batch":
        raise ValueError(
            "model.normalisation is 'batch', which mixes the patients of a batch, and training.privacy clips each "
            "patient's gradient by itself: set normalisation to group, or to frozen with weights: imagenet"
        )


class Plan(StrictModel):
    """What the centre asks every hospital to do: the input, the model and the local training."""

    images: ImagesConfig
    model: ModelConfig
    training: TrainingConfig

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        refuse_mixed_patients(self.model, self.training)
        return self

    def over(self, num_rounds: int) -> Self:
        """Gives the plan of a federation of so many rounds: what privacy promises over all of them is filled in."""
        privacy, steps = self.training.privacy, self.training.local_steps
        if privacy is None or steps is None:
            return self
        evaluation = privacy.evaluation
        if evaluation is not None and evaluation.total_evaluations is None:
            planned = len(evaluated_rounds(evaluation.every_rounds, num_rounds))
            evaluation = evaluation.model_copy(update={"total_evaluations": planned})
        filled = {"total_steps": privacy.total_steps or steps * num_rounds, "evaluation": evaluation}
        training = self.training.model_copy(update={"privacy": privacy.model_copy(update=filled)})
        return self.model_copy(update={"training": training})


class PhantomConfig(StrictModel):
    """Synthetic radiographs, written to ``data.root`` when that folder does not exist yet."""

    num_patients: int = Field(default=400, ge=2)
    image_size_px: int = Field(default=128, ge=32, le=2048)
    seed: int = Field(default=1, ge=0)
    preset: Literal["demo", "nih"] = "demo"
    num_hospitals: int = Field(default=3, ge=1)  # each with a scanner style of its own


class TableConfig(StrictModel):
    """A table of a hospital's own, one row an image; columns are found by their heading, whatever its case."""

    file: str = "labels.csv"  # relative to data.root
    images_folder: str = "images"  # relative to data.root; the image column may name files in folders below it
    image_column: str = "image"
    patient_column: str = "patient"
    age_column: str | None = None  # years, or 057Y, 013M, 001D
    sex_column: str | None = None  # F or M
    view_column: str | None = None  # PA or AP
    split_column: str | None = None  # train_val or test
    finding_columns: dict[str, str] = Field(
        default_factory=dict
    )  # finding: column; empty: columns named as the findings. Cells: 1, 0 or empty
    not_labelled: tuple[str, ...] = ()  # cells that mean not labelled, besides empty ones, such as -1

    @field_validator("finding_columns")
    @classmethod
    def _known_findings(cls, columns: dict[str, str]) -> dict[str, str]:
        try:
            named = {FINDINGS[finding_index(spelling)]: column for spelling, column in columns.items()}
        except UnknownFindingError as error:
            raise ValueError(str(error)) from error
        if len(named) < len(columns):
            raise ValueError(f"a finding is given twice among {', '.join(columns)}")
        return named


class FilesConfig(StrictModel):
    """What the image files may be, and how their values become grey."""

    bits_stored: int = Field(default=16, ge=8, le=16)  # of 16-bit PNGs: 12 where values only go up to 4095
    dicom_modalities: tuple[str, ...] = ("CR", "DX", "RG")
    dicom_body_parts: tuple[str, ...] = ("CHEST", "PORT CHEST", "THORAX")
    dicom_views: tuple[str, ...] = ("PA", "AP")


class DatasetConfig(StrictModel):
    """One folder of radiographs: where its table, files, withdrawn patients and decoded cache are."""

    root: Folder
    table: TableConfig | None = None  # None: the official layout, or a labels.csv with the default columns
    excluded_patients: str | None = None  # one id a line, relative to root; root/excluded_patients.txt always counts
    files: FilesConfig = FilesConfig()
    on_unreadable: OnUnreadable = "refuse"
    memory_limit_mb: int = Field(default=8192, ge=1)  # for decoded images without a cache; beyond it files are re-read
    use_cache: bool = True  # what `aecnn cache` decoded, where it is still true to the files
    cache_folder: Folder | None = None  # None: aecnn-cache in root


class DataConfig(DatasetConfig):
    """The dataset of a simulation: shared out among its hospitals, which also share its memory and cache."""

    phantom: PhantomConfig | None = None


class ScannerConfig(StrictModel):
    """How a simulated hospital's radiographs are shifted when they are read; each default changes nothing."""

    resolution_factor: float = Field(default=1.0, ge=1.0, le=16.0)  # 2: each 2 × 2 pixels become their mean
    gamma: float = Field(default=1.0, ge=0.25, le=4.0)  # grey**gamma, of greys from 0 to 1: above 1 darkens
    contrast: float = Field(default=1.0, ge=0.1, le=4.0)  # slope of the grey curve about middle grey
    brightness: float = Field(default=0.0, ge=-0.5, le=0.5)  # added to the greys from 0 to 1
    noise_std: float = Field(default=0.0, ge=0.0, le=0.5)  # of each pixel's grey, from 0 to 1
    noise_seed: int = Field(default=0, ge=0)  # with the image's name, it decides the noise
    border_fraction: float = Field(default=0.0, ge=0.0, le=0.25)  # of the side, black, along each edge


Share = Annotated[float, Field(gt=0.0, le=1e9)]
PartitionKind = Literal["equal", "sizes", "labels", "view", "age", "sex", "scanner", "manifest"]
_SETTINGS_OF_KINDS: dict[str, tuple[str, ...]] = {  # setting: the kinds it goes with
    "num_hospitals": ("equal", "sizes", "labels", "view", "age", "sex", "scanner"),
    "alpha": ("labels", "view", "age", "sex"),
    "sizes": ("sizes",),
    "sigma": ("sizes",),
}


class PartitionConfig(StrictModel):
    """How one dataset becomes hospitals; a patient is never in two of them."""

    by: PartitionKind = "equal"
    num_hospitals: int | None = Field(default=None, ge=1, le=10_000)
    sizes: tuple[Share, ...] | None = Field(default=None, min_length=1)  # for `sizes`: relative, of the patients
    sigma: float | None = Field(default=None, ge=0.0, le=5.0)  # for `sizes` without shares: they are exp(sigma·normal)
    alpha: float | None = Field(default=None, ge=0.01, le=1e6)  # for labels, view, age, sex: small means one-sided
    file: str = "patients.csv"  # for `manifest`: a table `Patient ID,Hospital`, relative to data.root
    min_patients: int = Field(default=1, ge=1)  # at every hospital; shares that are random are redrawn until it holds
    max_patients: int | None = Field(default=None, ge=1)  # keep at most this many patients at each hospital

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        given = {name for name in _SETTINGS_OF_KINDS if getattr(self, name) is not None}
        problems = [
            f"{name} goes with by: {', '.join(kinds)}, and by is {self.by!r}: remove it"
            for name, kinds in _SETTINGS_OF_KINDS.items()
            if name in given and self.by not in kinds
        ]
        if self.by == "sizes":
            needed = {"sizes"} if "sizes" in given else {"num_hospitals", "sigma"}
        else:
            needed = {name for name, kinds in _SETTINGS_OF_KINDS.items() if self.by in kinds}
        if not needed <= given:
            or_sizes = " (or sizes, one share a hospital)" * (self.by == "sizes")
            problems.append(f"by: {self.by} needs {' and '.join(sorted(needed - given, reverse=True))}{or_sizes}")
        if {"sizes", "sigma"} <= given:
            problems.append("sizes gives the shares of patients, and sigma would draw them: remove one of the two")
        if self.sizes is not None and self.num_hospitals not in (None, len(self.sizes)):
            problems.append(f"sizes has {len(self.sizes)} shares for {self.num_hospitals} hospitals: make them equal")
        if self.max_patients is not None and self.max_patients < self.min_patients:
            problems.append(f"max_patients {self.max_patients} is below min_patients {self.min_patients}: raise it")
        if problems:
            raise ValueError("; ".join(problems))
        return self


StrategyName = Literal["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedmedian", "fedtrimmedavg", "krum"]


class StrategyConfig(StrictModel):
    """How the hospitals' weights become one model; fedmedian, fedtrimmedavg and krum hold all updates in memory."""

    name: StrategyName = "fedavg"
    server_learning_rate: float | None = Field(default=None, gt=0.0)  # fedavgm, fedadam, fedyogi, fedadagrad
    server_momentum: float | None = Field(default=None, ge=0.0, lt=1.0)  # fedavgm
    trimmed_fraction: float | None = Field(default=None, gt=0.0, lt=0.5)  # fedtrimmedavg: from either end
    num_malicious: int | None = Field(default=None, ge=0)  # krum

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        goes_with = {
            "server_learning_rate": ("fedavgm", "fedadam", "fedyogi", "fedadagrad"),
            "server_momentum": ("fedavgm",),
            "trimmed_fraction": ("fedtrimmedavg",),
            "num_malicious": ("krum",),
        }
        odd = [key for key, names in goes_with.items() if getattr(self, key) is not None and self.name not in names]
        if odd:
            raise ValueError(f"{', '.join(odd)} does not go with strategy {self.name!r}: remove it")
        return self


def refuse_noise_on_statistics(federation: "FederationConfig", model: ModelConfig) -> None:
    """Refuses central privacy for a model whose batch statistics would leave without noise, or turn negative with it.

    Raises:
        ValueError: Its normalisation has such statistics.
    """
    if federation.central_privacy is not None and model.normalisation == "batch":
        raise ValueError(
            "model.normalisation is 'batch', whose statistics noise would make negative, and "
            "federation.central_privacy adds noise to all that is averaged: set normalisation to group or frozen"
        )


class FederationConfig(StrictModel):
    """The centre's side of a run: rounds, who takes part in each, and which round's model is released."""

    num_rounds: int = Field(default=3, ge=1)
    fraction: float = Field(default=1.0, gt=0.0, le=1.0)  # of the hospitals train in a round, at least min_hospitals
    min_hospitals: int = Field(default=2, ge=1)
    join_timeout_s: float = Field(default=600.0, gt=0.0)
    round_timeout_s: float = Field(default=3600.0, gt=0.0)
    max_failed_rounds: int = Field(default=3, ge=1)  # tries of one round without quorum, after which the run fails
    max_update_norm_ratio: float = Field(default=10.0, gt=1.0)  # of an update, to the median norm of the round or run
    validation_fraction: float = Field(default=0.1, gt=0.0, lt=1.0)
    released_round: Literal["last", "best"] = "best"  # best: by pooled validation AUROC, never by test
    strategy: StrategyConfig = StrategyConfig()
    central_privacy: CentralPrivacyConfig | None = None

    @model_validator(mode="after")
    def _privacy_is_averaged(self) -> Self:
        if self.central_privacy is not None and self.strategy.name != "fedavg":
            raise ValueError(
                f"central_privacy is accounted for an average, and strategy.name is {self.strategy.name!r}: "
                "set it to fedavg"
            )
        return self


class SimulationConfig(StrictModel):
    """One simulated federation, from dataset to report."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0, lt=2**31)
    data: DataConfig
    partition: PartitionConfig
    federation: FederationConfig
    images: ImagesConfig
    model: ModelConfig
    training: TrainingConfig
    train_alone: bool = False  # also train each hospital alone for as many steps, as the yardstick

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        refuse_mixed_patients(self.model, self.training)
        refuse_noise_on_statistics(self.federation, self.model)
        if self.model.normalisation == "batch" and self.training.batch_size == 1:
            raise ValueError("training.batch_size is 1 and model.normalisation 'batch' needs 2: raise it, or use group")
        hospitals = self.partition.num_hospitals or len(self.partition.sizes or ())
        if hospitals and self.federation.min_hospitals > hospitals:
            raise ValueError(
                f"federation.min_hospitals is {self.federation.min_hospitals}, and the partition makes {hospitals} "
                "hospitals: lower it, or make more hospitals"
            )
        return self

    @property
    def plan(self) -> Plan:
        """The half that travels to the hospitals."""
        plan = Plan(images=self.images, model=self.model, training=self.training)
        return plan.over(self.federation.num_rounds)


Config = TypeVar("Config", bound=BaseModel)


def load_config(path: Path, kind: type[Config], *, overrides: Sequence[str] = ()) -> Config:
    """Reads one YAML file, applies ``key.sub=value`` overrides and validates the whole.

    Raises:
        ConfigError: With every fault found, each with its key, value and remedy.
    """
    document = _read_document(path)
    faults = [fault for override in overrides if (fault := _apply_override(document, override))]
    if faults:
        raise ConfigError("--set", faults)
    return validate_config(document, kind, subject=path)


def load_dataset(place: Path) -> DatasetConfig:
    """Gives the dataset that a person names: a folder, a table, or a YAML with a ``data`` section.

    The section may be a site file's or a simulation's; what only these know (`_NOT_OF_DATASET`) is passed over, so
    that the whole folder is meant.

    Raises:
        ConfigError: The YAML has no such section, or a faulty one.
    """
    if place.suffix.lower() not in (".yaml", ".yml"):
        return DatasetConfig(root=place)
    section = _read_document(place).get("data")
    if not isinstance(section, dict):
        raise ConfigError(place, ["has no section `data` that says where the dataset is (data.root)"])
    own = {key: value for key, value in section.items() if key not in _NOT_OF_DATASET}
    return validate_config(own, DatasetConfig, subject=f"{place}, section data")


def locate_config(name: str) -> Path:
    """Gives the path of a configuration named relative to the working folder or to the folder of these packages.

    Flower unpacks an app's bundle where it likes and starts it in another folder, so a relative name is looked up in
    both places.

    Raises:
        ConfigError: It is in neither.
    """
    places = [Path(name).expanduser(), Path(__file__).resolve().parents[1] / name]
    for place in places:
        if place.is_file():
            return place.resolve()
    raise ConfigError(name, [f"is not a file; looked at {' and '.join(str(place.absolute()) for place in places)}"])


def validate_config(document: object, kind: type[Config], *, subject: object) -> Config:
    """Validates plain data against a model; the errors read as sentences.

    Raises:
        ConfigError: With every fault found.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise ConfigError(subject, [_sentence(fault, kind) for fault in error.errors()]) from error


def dump_config(config: BaseModel) -> str:
    """Gives the YAML text of a configuration, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_document(path: Path) -> dict[str, Any]:
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise ConfigError(path, [f"holds {type(document).__name__}, expected keys and values"])
    return document


def _apply_override(document: dict[str, Any], override: str) -> str | None:
    """Puts a value in its place; gives why it cannot, or None."""
    key, separator, value = override.partition("=")
    if not separator or not key:
        return f"{override}: expected key=value, for example training.batch_size=16"
    *parents, last = key.split(".")
    place = document
    for parent in parents:
        inner = place.setdefault(parent, {})
        if not isinstance(inner, dict):
            return f"{override}: {parent!r} is the value {inner!r}, it has no keys below it"
        place = inner
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        return f"{override}: {value!r} is not a YAML value"
    return None


def _sentence(fault: Any, kind: type[BaseModel]) -> str:
    place = ".".join(str(part) for part in fault["loc"]) or "the file"
    if fault["type"] == "extra_forbidden":
        known = tuple(_keys_at(kind, fault["loc"][:-1]))
        hint = nearest_hint(str(fault["loc"][-1]), known) or f"; known keys: {', '.join(known)}"
        return f"{place}: no such key{hint}"
    if fault["type"] == "missing":
        return f"{place}: is missing, and has no default"
    pattern = str((fault.get("ctx") or {}).get("pattern"))
    message = _IN_WORDS.get(pattern) or fault["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{place}: {message}" + ("" if isinstance(fault["input"], dict) else f" (found {fault['input']!r})")


def _keys_at(kind: type[BaseModel], place: tuple[object, ...]) -> list[str]:
    """Names of the keys allowed at a nested place of a model."""
    for part in place:
        field = kind.model_fields.get(str(part))
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not inner:
            return []
        kind = inner[0]
    return list(kind.model_fields)
