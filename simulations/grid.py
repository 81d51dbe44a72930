"""Flower's grid inside one process: the ClientApp is called directly, with no sockets and one resident model.

A message is answered when its reply is pulled, one message a pull, so that answers come one by one as they do from
real hospitals. Server and client apps are the same as in a deployment.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE_ID = 1
FIRST_CLIENT_NODE_ID = 2
RUN_ID = 1

Settings = dict[str, str | int | float | bool]


@dataclass(frozen=True)
class _Pending:
    message_id: str
    message: Message


class InProcessGrid(Grid):
    """A grid of simulated nodes, each with a context of its own that lasts for the run."""

    def __init__(self, client_app: ClientApp, *, num_nodes: int, run_config: Settings) -> None:
        self._client_app = client_app
        self._run = Run.create_empty(RUN_ID)
        self._contexts = {
            FIRST_CLIENT_NODE_ID + partition: Context(
                run_id=RUN_ID,
                node_id=FIRST_CLIENT_NODE_ID + partition,
                node_config={"partition-id": partition, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for partition in range(num_nodes)
        }
        self._pending: deque[_Pending] = deque()
        self._num_pushed = 0
        # Flower reads the sender of a new message from the process's identity.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, SERVER_NODE_ID

    def set_run(self, run: Run) -> None:
        """Sets the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Gives a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Gives the simulated nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queues messages; gives their ids."""
        ids = []
        for message in messages:
            self._num_pushed += 1
            message_id = str(self._num_pushed)
            message.metadata.__dict__["_message_id"] = message_id  # as Flower's own grids do when they send
            self._pending.append(_Pending(message_id, message))
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Has the next of the wanted messages answered; gives that one reply, or none when all are answered."""
        wanted = set(message_ids)
        for pending in list(self._pending):
            if pending.message_id in wanted:
                self._pending.remove(pending)
                context = self._contexts[pending.message.metadata.dst_node_id]
                return [self._client_app(pending.message, context)]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Sends messages and gives all replies; a call into the same process cannot be timed out."""
        ids = list(self.push_messages(messages))
        return [reply for _ in ids for reply in self.pull_messages(ids)]
