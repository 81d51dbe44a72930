"""One hospital for tests: its folder, the centre's messages to it, and what comes back."""

from pathlib import Path

import numpy as np
import yaml
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from aecnn import contract
from aecnn.config import ImagesConfig, ModelConfig, Plan, TrainingConfig
from aecnn.contract import Request
from aecnn.model.joint import build_model
from aecnn.model.weights import Weights, weights_of
from client.paths import SitePaths
from client.wire import packed_record, to_array_record

RUN_ID = "0123456789abcdef"
FEW_PATIENTS = 3
PLAN = Plan(
    images=ImagesConfig(size_px=64),
    model=ModelConfig(backbone="resnet18"),
    training=TrainingConfig(optimizer="sgd", learning_rate=1e-3, batch_size=4, local_steps=2, num_threads=1),
)


def hospital_folder(folder: Path, data_root: Path, **policy) -> SitePaths:
    """Makes a hospital's folder as ``aecnn-client init`` would; keyword arguments go into the policy."""
    paths = SitePaths(folder)
    paths.state.mkdir(parents=True)
    write_site(paths, data_root, **policy)
    return paths


def write_site(paths: SitePaths, data_root: Path, *, has_policy: bool = True, **policy) -> None:
    """Writes the site file, in place of another; the few patients of tests are enough where nothing is said."""
    policy = {"min_patients": FEW_PATIENTS} | policy
    document = {"name": "st-mary", "validation_key": "a-long-secret", "device": "cpu", "data": {"root": str(data_root)}}
    paths.site.write_text(yaml.safe_dump(document | ({"policy": policy} if has_policy else {})))


def initial_weights(plan: Plan = PLAN) -> Weights:
    """The weights a run of the plan would start with."""
    return weights_of(build_model(plan.model, seed=0, input_size_px=plan.images.input_size_px))


def centre_message(kind: str, *, weights: Weights | None = None, files=None, message_id="m-1", plan=PLAN, **request):
    """A message of the centre, as it arrives; keyword arguments go into the request."""
    fields = {
        "run": "small",
        "run_id": RUN_ID,
        "round": 1,
        "seed": 3,
        "plan_json": plan.model_dump_json(),
        "validation_fraction": 0.25,
    }
    content = RecordDict({contract.REQUEST: ConfigRecord(Request(**(fields | request)).to_wire())})
    if weights is not None:
        content[contract.WEIGHTS] = packed_record(weights)
    if files is not None:
        content[contract.FILES] = to_array_record(
            {name: np.frombuffer(file, np.uint8) if isinstance(file, bytes) else file for name, file in files.items()}
        )
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    message = Message(content, 2, kind)
    message.metadata.__dict__["_message_id"] = message_id
    return message


def asked(app, message: Message, paths: SitePaths) -> Message:
    """What an app answers at a hospital without a worker."""
    context = Context(run_id=1, node_id=2, node_config={"site": str(paths.site)}, state=RecordDict(), run_config={})
    return app(message, context)
