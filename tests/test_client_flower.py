"""The way to the SuperNode: one that is gone, or knows nothing of a task any more, is told and survived."""

import hashlib
import socket
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
import uvicorn
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullTaskInputRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.corestate import in_memory_corestate
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory

from client import flower
from client.flower import LocalNode, NodeLostError, TaskSource

RUN_ID = 11
SECRET = b"s" * 32
BUNDLE = b"never read"
FAB_HASH = hashlib.sha256(BUNDLE).hexdigest()


@pytest.fixture
def forgetful_node():
    """A SuperNode that started anew: it refuses every token."""
    asked = []

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield LocalNode(port=server.server_port, secret=SECRET), asked
        server.shutdown()


def _client(node):
    return RuntimeHttpClient.from_server_address(
        node.address, insecure=True, root_certificates=None, interceptors=[], retry_invoker=flower._short_retries()
    )


def test_a_refused_token_is_told_at_once_and_does_not_interrupt_the_worker(forgetful_node):
    node, asked = forgetful_node
    with pytest.raises(httpx.HTTPStatusError):
        _client(node).SendTaskHeartbeat(SendTaskHeartbeatRequest())
    assert len(asked) == 1
    time.sleep(0.2)  # Flower's own retries would have sent SIGINT to this process


def test_the_heartbeat_of_a_task_that_was_given_up_lets_the_work_go_on(forgetful_node):
    node, asked = forgetful_node
    heartbeat = flower._Heartbeat(_client(node))
    assert [heartbeat() for _ in range(3)] == [True] * 3
    assert len(asked) == 1


def test_a_node_that_refuses_the_secret_is_a_lost_node(forgetful_node):
    node, _ = forgetful_node
    with pytest.raises(NodeLostError), TaskSource(node).next_task():
        pass


@pytest.fixture
def node_state():
    """The state of a SuperNode without a centre, in which a run is known."""
    state = NodeStateFactory(ObjectStoreFactory()).state()
    state.set_node_id(7)
    run = Run.create_empty(RUN_ID)
    run.fab_hash, run.series_id = FAB_HASH, 3
    state.store_run(run)
    state.store_fab(Fab(FAB_HASH, BUNDLE, {}))
    context = Context(run_id=RUN_ID, node_id=7, node_config={}, state=RecordDict(), run_config={}, series_id=3)
    state.set_run_series_context(3, context)
    return state


@pytest.fixture
def source(node_state):
    """Takes tasks from Flower's own Runtime service of a SuperNode, over `node_state`."""

    class Factory:
        state = staticmethod(lambda: node_state)

    application = create_app(Factory(), SECRET)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(application, log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while thread.is_alive() and not server.started:
            time.sleep(0.02)
        with closing(TaskSource(LocalNode(port=listener.getsockname()[1], secret=SECRET))) as tasks:
            yield tasks
        server.should_exit = True
        thread.join(timeout=20)


def _come(node_state, word, *, is_complete=True):
    """A message arrives at the SuperNode; one that is not complete lacks what is in it."""
    content = RecordDict({"word": ConfigRecord({"is": word})})
    metadata = Metadata(
        run_id=RUN_ID, message_id="", src_node_id=1, dst_node_id=7, reply_to_message_id="", group_id="1",
        created_at=time.time(), ttl=600.0, message_type="train",
    )  # fmt: skip
    message = make_message(metadata=metadata, content=content)
    metadata.__dict__["_message_id"] = message.object_id
    node_state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN_ID, fab_hash=FAB_HASH)
    node_state.object_store.preregister(RUN_ID, get_object_tree(message))
    parts = get_all_nested_objects(message) if is_complete else {}
    for object_id, part in parts.items():
        node_state.object_store.put(object_id, part.deflate())
    node_state.store_message(remove_content_from_message(message))


def _word(task):
    return task.message.content["word"]["is"]


def test_a_task_is_answered_and_ended(source, node_state):
    _come(node_state, "good")
    with source.next_task() as task:
        assert _word(task) == "good"
        task.answer(Message(RecordDict(), reply_to=task.message))
    assert len(node_state.get_messages(is_reply=True)) == 1
    assert [task.status.sub_status for task in node_state.get_tasks()] == [SubStatus.COMPLETED]


def test_a_message_that_the_node_gave_up_does_not_hold_up_the_next(source, node_state, caplog):
    """The run of the first ended while it was fetched: its content will never come."""
    _come(node_state, "abandoned", is_complete=False)
    threading.Timer(0.5, _come, (node_state, "next")).start()
    with source.next_task() as task:
        assert task is None
    assert "has another" in caplog.text
    with source.next_task() as task:
        assert _word(task) == "next"
        task.answer(Message(RecordDict(), reply_to=task.message))
    (reply,) = node_state.get_messages(is_reply=True)  # one for the abandoned one would be sent in place of this
    assert not reply.has_error()
    with source.next_task() as task:
        assert task is None


def test_an_unreadable_message_is_answered_by_the_node_once_its_task_lapsed(source, node_state, monkeypatch, caplog):
    """The SuperNode waits for an answer to each message: one whose task ended without would hold up all others."""
    monkeypatch.setattr(in_memory_corestate, "HEARTBEAT_DEFAULT_INTERVAL", 2.0)

    def unreadable(client):
        client.PullTaskInput(PullTaskInputRequest())
        client.PullMessages(PullAppMessagesRequest())
        raise ValueError("Invalid message type")

    monkeypatch.setattr(flower, "pull_task_input", unreadable)
    _come(node_state, "garbled")
    with source.next_task() as task:
        assert task is None
    assert "cannot read" in caplog.text
    deadline = time.monotonic() + 30
    while not (replies := node_state.get_messages(is_reply=True)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [reply.error.code for reply in replies] == [ErrorCode.CLIENT_APP_CRASHED]


def test_a_node_that_is_not_there_has_no_task(monkeypatch):
    monkeypatch.setattr(flower, "RETRY_FOR_S", 0.5)
    nobody = LocalNode(port=1, secret=SECRET)
    with TaskSource(nobody).next_task() as task:
        assert task is None
    with pytest.raises(httpx.TransportError):
        _client(nobody).SendTaskHeartbeat(SendTaskHeartbeatRequest())
