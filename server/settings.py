"""The centre's ``server.yaml``: the run it wants, and how hospitals reach it."""

import contextlib
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from aecnn.config import (
    ADDRESS,
    HOSPITAL_NAME,
    DatasetConfig,
    FederationConfig,
    ImagesConfig,
    ModelConfig,
    Plan,
    SimulationConfig,
    TrainingConfig,
    load_config,
    refuse_mixed_patients,
    refuse_noise_on_statistics,
)
from aecnn.errors import ConfigError
from aecnn.strict_model import StrictModel


class ServerConfig(StrictModel):
    """One federation of real hospitals, as the centre runs it."""

    name: str = Field(pattern=HOSPITAL_NAME)
    seed: int = Field(default=0, ge=0, lt=2**31)
    address: str = Field(pattern=ADDRESS)  # what hospitals connect to; the certificate names its host
    listen: str = Field(default="0.0.0.0:9092", pattern=ADDRESS)
    local_port: int = Field(default=8000, ge=1, le=65535)  # of the services that stay on this machine's loopback
    num_runs: int = Field(default=1, ge=1)  # one after the other; each next one has the next seed
    accepted_fingerprints: tuple[str, ...] = ()  # of other code that may take part besides this installation's
    federation: FederationConfig
    images: ImagesConfig
    model: ModelConfig
    training: TrainingConfig
    test_data: DatasetConfig | None = None  # scored after every round and at the end; never chosen by

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        refuse_mixed_patients(self.model, self.training)
        refuse_noise_on_statistics(self.federation, self.model)
        if self.model.normalisation == "batch" and self.training.batch_size == 1:
            raise ValueError("training.batch_size is 1 and model.normalisation 'batch' needs 2: raise it, or use group")
        return self

    @property
    def plan(self) -> Plan:
        """The half that travels to the hospitals."""
        plan = Plan(images=self.images, model=self.model, training=self.training)
        return plan.over(self.federation.num_rounds)


class RunSettings(StrictModel):
    """What one run needs to know, whether its hospitals are simulated or real."""

    name: str
    seed: int
    federation: FederationConfig
    plan: Plan
    test_data: DatasetConfig | None
    is_tested_each_round: bool
    accepted_fingerprints: tuple[str, ...] = ()

    @classmethod
    def of_simulation(cls, config: SimulationConfig) -> Self:
        """A simulated run: the whole dataset's test split judges the released model."""
        return cls(
            name=config.name,
            seed=config.seed,
            federation=config.federation,
            plan=config.plan,
            test_data=config.data,
            is_tested_each_round=False,
        )

    @classmethod
    def of_server(cls, config: ServerConfig) -> Self:
        """A run of a real federation, from its own configuration."""
        return cls(
            name=config.name,
            seed=config.seed,
            federation=config.federation,
            plan=config.plan,
            test_data=config.test_data,
            is_tested_each_round=config.test_data is not None,
            accepted_fingerprints=config.accepted_fingerprints,
        )


class CentrePaths:
    """The federation folder that ``flower-server init`` makes: where everything of it lies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder = folder.absolute()
        self.config = folder / "server.yaml"
        self.federation = folder / "federation.yaml"
        self.ca_certificate = folder / "tls" / "ca.pem"
        self.ca_key = folder / "tls" / "ca.key"
        self.certificate = folder / "tls" / "server.pem"
        self.key = folder / "tls" / "server.key"
        self.roster = folder / "hospitals.json"
        self.state = folder / "state"
        self.database = self.state / "superlink.sqlite"
        self.secret = self.state / "secret"
        self.lock = self.state / "lock"
        self.status = self.state / "status.json"  # what the coordinator is doing
        self.plan = self.state / "plan.json"  # the runs since `start`
        self.processes = self.state / "processes.json"  # process ids, as long as the lock is held
        self.logs = self.state / "logs"
        self.flower_home = self.state / "flower"
        self.runs = folder / "runs"


def read_server_config(path: Path) -> ServerConfig:
    """Reads a ``server.yaml``; folders in it are relative to where it lies.

    Raises:
        ConfigError: With every fault found.
    """
    path = path.absolute()
    if not path.is_file():
        raise ConfigError(path, ["is not there: make a federation folder with flower-server init, or give --folder"])
    with contextlib.chdir(path.parent):
        return load_config(path, ServerConfig)
