"""Hospitals that answer at once and as a test says, through a real ClientApp, and a grid on which they have names."""

import zlib
from collections import Counter, defaultdict

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo

from aecnn import contract
from aecnn.config import FederationConfig, ImagesConfig, ModelConfig, Plan, TrainingConfig
from aecnn.model.weights import pack_weights, unpack_weights
from server.members import Enrolled
from server.settings import RunSettings
from simulations.grid import FIRST_CLIENT_NODE_ID, InProcessGrid

NAMES = ("hospital-1", "hospital-2", "hospital-3")
NUM_IMAGES = {"hospital-1": 10, "hospital-2": 20, "hospital-3": 30}
PLAN = Plan(
    images=ImagesConfig(size_px=64),
    model=ModelConfig(backbone="resnet18", normalisation="batch"),
    training=TrainingConfig(local_steps=1),
)


def settings(**federation) -> RunSettings:
    """Gives a run of two rounds; keyword arguments replace settings of the federation."""
    chosen = {"num_rounds": 2, "min_hospitals": 2, "released_round": "last", "round_timeout_s": 20.0, **federation}
    return RunSettings(
        name="scripted",
        seed=1,
        federation=FederationConfig.model_validate(chosen),
        plan=PLAN,
        test_data=None,
        is_tested_each_round=False,
    )


def enrolled(*names: str):
    """Gives the roster's callable; the hospitals in it declared just what they hold."""
    chosen = names or NAMES
    return lambda: {name: Enrolled(NUM_IMAGES[name] + 5, 8, "0" * 64) for name in chosen}


class Hospitals:
    """What the hospitals were asked, and what they are to answer instead of the usual."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[str, str, int]] = Counter()  # (hospital, kind, round) → times
        self.requests: dict[tuple[str, str, int], contract.Request] = {}
        self.codes: dict[tuple[str, str], list[int]] = defaultdict(list)  # (hospital, kind) → codes to answer first
        self.changes = {}  # (hospital, kind) → change of a reply
        self.files: dict[str, dict[str, bytes]] = {}  # what was delivered
        self.app = self._app()

    def _app(self) -> ClientApp:
        app = ClientApp()
        for kind in (app.query(), app.train(), app.evaluate(), app.query("deliver")):
            kind(self._answer)
        return app

    def _answer(self, message: Message, context) -> Message:
        name, kind = NAMES[int(context.node_config["partition-id"])], message.metadata.message_type
        request = contract.Request.from_wire(dict(message.content[contract.REQUEST]))
        self.asked[name, kind, request.round] += 1
        self.requests[name, kind, request.round] = request
        if self.codes[name, kind]:
            code = self.codes[name, kind].pop(0)
            return Message(Error(code, "as the test says"), reply_to=message)
        origin = contract.Origin(hospital=name, round=request.round, fingerprint=contract.code_fingerprint())
        content = RecordDict({contract.ORIGIN: ConfigRecord(origin.to_wire())})
        if kind == contract.JOIN:
            content[contract.COUNTS] = ConfigRecord(_counts(name).to_wire())
        if kind in (contract.TRAIN, contract.EVALUATE):
            sums = contract.ValidationReport(num_images=5, bce_sum=2.0, mse_sum=0.1)
            content[contract.VALIDATION] = MetricRecord(sums.to_wire())
        if kind == contract.TRAIN:
            _train(name, request, message, content)
        if kind == contract.DELIVER:
            files = message.content[contract.FILES]
            self.files[name] = {file: array.numpy().tobytes() for file, array in files.items()}
        reply = Message(content, reply_to=message)
        change = self.changes.get((name, kind))
        if change is not None:
            change(reply)
        return reply


def _counts(name: str) -> contract.HospitalCounts:
    return contract.HospitalCounts(
        num_train_images=NUM_IMAGES[name],
        num_train_patients=6,
        num_validation_images=5,
        num_validation_patients=2,
        num_skipped_images=0,
    )


def _train(name: str, request: contract.Request, message: Message, content: RecordDict) -> None:
    """Trains as a hospital does, in that the weights move a little; the move follows from name and round."""
    random = np.random.default_rng((zlib.crc32(name.encode()), request.round))
    weights = unpack_weights(message.content[contract.WEIGHTS][contract.PACKED].numpy())
    moved = {
        key: array + np.asarray(1e-3 * random.random(array.shape, dtype=np.float32))
        if array.dtype == np.float32
        else array + 1
        for key, array in sorted(weights.items())  # safetensors gives them in any order
    }
    content[contract.WEIGHTS] = ArrayRecord({contract.PACKED: Array(pack_weights(moved))})
    report = contract.RoundReport(num_images=NUM_IMAGES[name], num_steps=1, images_seen=8, seconds=0.1)
    content[contract.REPORT] = MetricRecord(report.to_wire())


class NamedGrid(InProcessGrid):
    """A grid whose nodes were registered by name, as a deployment's are; a hospital may be offline or silent."""

    def __init__(self, app: ClientApp) -> None:
        super().__init__(app, num_nodes=len(NAMES), run_config={})
        self._nodes = {name: FIRST_CLIENT_NODE_ID + index for index, name in enumerate(NAMES)}
        self.offline: set[str] = set()
        self.silent: set[str] = set()  # online, and no reply comes
        self.on_pull = lambda: None

    def get_nodes(self):
        """Gives those online with their names."""
        return [NodeInfo(node_id=node, name=name) for name, node in self._nodes.items() if name not in self.offline]

    def register_anew(self, name: str) -> None:
        """Gives a hospital a new key, and thereby another node: what was sent to its old one is never answered."""
        old, new = self._nodes[name], max(self._contexts) + 1
        context = self._contexts[old]
        self._contexts[new] = Context(
            run_id=context.run_id, node_id=new, node_config=context.node_config, state=RecordDict(), run_config={}
        )
        self._nodes[name] = new

    def pull_messages(self, message_ids):
        """Gives a reply, unless its hospital is not there."""
        self.on_pull()
        wanted = [pending.message_id for pending in self._pending if self._is_there(pending.message)]
        return super().pull_messages([message_id for message_id in message_ids if message_id in wanted])

    def _is_there(self, message: Message) -> bool:
        there = {node for name, node in self._nodes.items() if name not in self.offline | self.silent}
        return message.metadata.dst_node_id in there
