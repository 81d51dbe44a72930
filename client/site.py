"""A hospital's site file: its name, where its radiographs lie, and what it trains on.

A simulated hospital has one too, written by ``aecnn-simulate``. Where Flower simulates nodes without such files (plain
``flwr run .``), each node takes its share of the dataset in the run's configuration.
"""

import hashlib
import logging
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import Field, model_validator

from aecnn.config import (
    HOSPITAL_NAME,
    Backbone,
    DatasetConfig,
    Folder,
    ScannerConfig,
    SimulationConfig,
    load_config,
    locate_config,
)
from aecnn.data.columns import canonical_patients
from aecnn.data.consent import ConsentState, consent_state
from aecnn.data.manifest import Manifest, read_manifest
from aecnn.data.phantom import write_phantom
from aecnn.data.scanner import with_scanner
from aecnn.data.source import LoadedImages, load_images
from aecnn.data.split import in_validation
from aecnn.data.tables import read_list
from aecnn.errors import FederationError, ManifestError
from aecnn.strict_model import StrictModel
from aecnn.training.batches import Rows

NodeSettings = Mapping[str, object]
log = logging.getLogger(__name__)


class SiteDataConfig(DatasetConfig):
    """Where a hospital's radiographs lie and which of their patients are its own."""

    patients_file: str | None = None  # one patient a line, beside the site file; None: all patients
    scanner: ScannerConfig | None = None  # for simulations: the images are shifted to look like another scanner's


class ReportConfig(StrictModel):
    """What besides the weights may leave; False keeps it at the hospital."""

    training_sums: bool = True  # losses and latent pixels, summed over the images of a round
    validation_sums: bool = True
    histograms: bool = True  # of validation scores by finding; small cells can tell much about single patients
    histogram_mode: Literal["fine", "floored"] = "fine"  # floored: no count of fewer patients than min_patients
    positives: bool = True  # training images by finding, once


class AcceptedConfig(StrictModel):
    """What the centre may ask for; anything else is refused."""

    max_rounds: int = Field(default=100, ge=1)  # of one run
    max_runs: int = Field(default=20, ge=1)  # answered in the life of the folder: a new run would begin max_rounds anew
    max_steps_per_round: int = Field(default=20_000, ge=1)
    validation_fraction: float | None = Field(default=None, gt=0.0, lt=1.0)  # None: the first that was asked for
    backbones: tuple[Backbone, ...] | None = None  # None: every one this software has
    released_files: bool = True  # the released model, report and model card are kept in models/
    requires_privacy: bool = False  # True: nothing is trained without differential privacy


class PrivacyPolicyConfig(StrictModel):
    """What a hospital asks of differential privacy (patient-level; one patient is added or removed)."""

    patients: int | None = Field(default=None, ge=1)  # in training, as may be told; None: private requests are refused
    max_epsilon: float = Field(default=8.0, gt=0.0)  # of the patient who has spent most, over the life of the data
    delta: float | None = Field(default=None, gt=0.0, lt=1.0)  # None: min(1e-5, 1/(10·patients))
    min_noise_multiplier: float | None = Field(default=None, gt=0.0)  # None: as little as the plan says
    max_evaluation_epsilon: float | None = Field(default=None, gt=0.0)  # None: no noised histograms leave
    ledger_folder: Folder | None = None  # None: private requests are refused; a simulated hospital has none

    @model_validator(mode="after")
    def _delta_is_small(self) -> Self:
        if self.delta is not None and self.patients is not None and self.delta >= 1.0 / self.patients:
            raise ValueError(
                f"delta is {self.delta:g}, and with {self.patients} patients it must be below {1 / self.patients:.3g}: "
                "a larger one allows that some patient's data are published as they are"
            )
        return self


class PolicyConfig(StrictModel):
    """What a hospital lets leave and lets be asked. A site file without one lets nothing leave."""

    report: ReportConfig = ReportConfig()
    accept: AcceptedConfig = AcceptedConfig()
    privacy: PrivacyPolicyConfig = PrivacyPolicyConfig()
    min_patients: int = Field(default=10, ge=1)  # with fewer in a round's training, nothing leaves of it
    min_steps: int = Field(default=1, ge=1)  # in a round, or its weights do not leave
    working_hours: str | None = Field(default=None, pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$")


class SiteConfig(StrictModel):
    """One hospital's own settings; the centre never sees them."""

    name: str = Field(pattern=HOSPITAL_NAME)
    validation_key: str = Field(min_length=8)  # decides which patients validate; keep it for the life of the data
    device: str = "auto"
    data: SiteDataConfig
    policy: PolicyConfig | None = None  # None: nothing leaves
    local_port: int = Field(default=8100, ge=1, le=65535)  # of the SuperNode's service on this machine's loopback


# A simulated hospital holds what the simulation gives it, and has no one to protect.
SIMULATED_POLICY = PolicyConfig(
    min_patients=1,
    accept=AcceptedConfig(max_rounds=10**6, max_steps_per_round=10**9),
    privacy=PrivacyPolicyConfig(max_evaluation_epsilon=1e9),
)


@dataclass(frozen=True, eq=False)
class Hospital:
    """A site file with its manifest: the test images are left out, whatever the dataset says."""

    config: SiteConfig
    manifest: Manifest


@dataclass(frozen=True)
class TrainingData:
    """A hospital's decoded images, split into a training and a validation part by patient."""

    loaded: LoadedImages
    train_rows: Rows
    validation_rows: Rows


def hospital_of(node_config: NodeSettings, run_config: NodeSettings) -> Hospital:
    """Gives the hospital this node is.

    A node that names its own site file (`site`) is that hospital, whatever the run's configuration says. A simulated
    node is known by its partition number.

    Raises:
        FederationError: The node is neither.
    """
    if "site" in node_config:
        return read_hospital(Path(str(node_config["site"])))
    if "partition-id" not in node_config:
        raise FederationError("this node names no site file: start it with --node-config 'site=\"/path/site.yaml\"'")
    partition, count = int(str(node_config["partition-id"])), int(str(node_config["num-partitions"]))
    folder = str(run_config.get("hospitals", ""))
    if not folder:
        return _share_of_dataset(str(run_config["config"]), partition, count)
    sites = sorted(Path(folder).glob("*/site.yaml"))
    if len(sites) != count:
        raise FederationError(f"{folder} holds {len(sites)} site files for {count} simulated nodes: make them equal")
    return read_hospital(sites[partition])


def read_hospital(site_file: Path) -> Hospital:
    """Reads a site file, and the manifest of its patients once for as long as neither file nor withdrawals change.

    Another policy is another `Hospital` with the same manifest: it decides what may be asked, and not who is there.

    Raises:
        ConfigError: The site file is faulty.
        ManifestError: The dataset is faulty, or holds none of the hospital's patients.
    """
    config = load_config(site_file, SiteConfig)
    basis = config.model_copy(update={"policy": None})
    hospital = _kept(site_file, basis, lambda: _read_hospital(site_file, config))
    if hospital.config != config:
        hospital = replace(hospital, config=config)
        _hospitals[site_file] = (*_hospitals[site_file][:2], hospital)
    return hospital


def _read_hospital(site_file: Path, config: SiteConfig) -> Hospital:
    manifest = _without_test(read_manifest(config.data))
    if config.data.patients_file is not None:
        own = read_list(site_file.parent / config.data.patients_file).reset_index(drop=True)
        manifest = manifest.of_patients(canonical_patients(own).tolist())
    return _hospital(config, manifest)


def _share_of_dataset(config_file: str, partition: int, count: int) -> Hospital:
    """The patients whose hash falls to one of `count` simulated hospitals of about equal size."""
    config = load_config(locate_config(config_file), SimulationConfig)
    return _kept((config_file, partition, count), config, lambda: _read_share(config, partition, count))


def _read_share(config: SimulationConfig, partition: int, count: int) -> Hospital:
    if config.partition.by != "equal":
        raise FederationError(
            f"plain `flwr run` deals patients out equally, and partition.by is {config.partition.by!r}: set it to "
            "equal, or use aecnn-simulate run"
        )
    if config.data.phantom is not None:
        write_phantom(config.data.root, config.data.phantom)
    manifest = _without_test(read_manifest(config.data))
    shared = config.data.model_dump(exclude={"phantom"})
    site = SiteConfig(
        name=f"hospital-{partition + 1:02d}",
        validation_key=f"simulated-{config.seed}",
        data=SiteDataConfig(**shared | {"memory_limit_mb": max(1, config.data.memory_limit_mb // count)}),
        policy=SIMULATED_POLICY,
    )
    own = [patient for patient in manifest.patients if _bucket(patient) % count == partition]
    return _hospital(site, manifest.of_patients(own))


_hospitals: dict[Hashable, tuple[ConsentState, StrictModel, Hospital]] = {}
_training_data: WeakKeyDictionary[Hospital, tuple[tuple[int, float], TrainingData]] = WeakKeyDictionary()


def _kept(key: Hashable, basis: SiteConfig | SimulationConfig, read: Callable[[], Hospital]) -> Hospital:
    """The hospital as read before.

    When a patient withdraws, or a setting it rests on changes, it is read anew, and what was decoded of it forgotten.
    """
    state = consent_state(basis.data)
    if key not in _hospitals or _hospitals[key][:2] != (state, basis):
        _hospitals[key] = (state, basis, read())
    return _hospitals[key][2]


def read_training_data(hospital: Hospital, size_px: int, validation_fraction: float) -> TrainingData:
    """Decodes a hospital's images and splits them by patient, once for as long as size and split stay the same.

    Raises:
        ManifestError: Images are unreadable and the site file does not say to skip them, or a part is empty.
    """
    kept, key = _training_data.get(hospital), (size_px, validation_fraction)
    if kept is None or kept[0] != key:
        kept = None
        _training_data.pop(hospital, None)  # before more is decoded: memory holds one set of images
        kept = _training_data[hospital] = (key, _read_training_data(hospital, size_px, validation_fraction))
    return kept[1]


def _read_training_data(hospital: Hospital, size_px: int, validation_fraction: float) -> TrainingData:
    config = hospital.config
    loaded = load_images(hospital.manifest, config.data, size_px=size_px)
    for sentence in loaded.warnings:
        log.warning("%s: %s", config.name, sentence)
    for sentence in loaded.skipped:
        log.warning("%s: skipped: %s", config.name, sentence)
    if config.data.scanner is not None:
        loaded = with_scanner(loaded, config.data.scanner)
    patients = loaded.manifest.table["patient"].tolist()
    validates = in_validation(patients, fraction=validation_fraction, key=config.validation_key)
    if validates.all():
        raise ManifestError(
            config.data.root,
            [f"{config.name} has {len(set(patients))} patient(s), none of whom is left to train on: add patients"],
        )
    return TrainingData(loaded, np.flatnonzero(~validates), np.flatnonzero(validates))


def _hospital(config: SiteConfig, manifest: Manifest) -> Hospital:
    if len(manifest) == 0:
        raise ManifestError(config.data.root, [f"holds no training image of a patient of {config.name}"])
    return Hospital(config, manifest)


def _without_test(manifest: Manifest) -> Manifest:
    return manifest.select((manifest.table["split"] != "test").to_numpy(dtype=bool))


def _bucket(patient: str) -> int:
    return int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big")
