"""The way to the SuperNode: one that is gone, or knows nothing of a task any more, is told and survived."""

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskResponse, SendTaskHeartbeatRequest, SendTaskHeartbeatResponse
from flwr.proto.task_pb2 import Task
from flwr.supercore.runtime import RuntimeHttpClient

from client import flower
from client.flower import LocalNode, NodeLostError, TaskSource


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
        yield LocalNode(port=server.server_port, secret=b"s" * 32), asked
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


def test_a_message_that_flower_cannot_read_fails_its_task_and_not_the_worker(monkeypatch, caplog):
    told = []

    class Node:
        """A SuperNode with one task."""

        from_server_address = staticmethod(lambda *arguments, **more: Node())
        close = staticmethod(lambda: None)
        SendTaskHeartbeat = staticmethod(lambda asked: SendTaskHeartbeatResponse(success=True))
        AcquireTask = staticmethod(lambda asked: AcquireTaskResponse(task=Task(), token="t"))  # noqa: S106 - of nobody
        PushTaskOutput = staticmethod(told.append)

    def unreadable(client):
        raise ValueError("Invalid message type")

    monkeypatch.setattr(flower, "RuntimeHttpClient", Node)
    monkeypatch.setattr(flower, "pull_task_input", unreadable)
    with TaskSource(LocalNode(port=1, secret=b"s" * 32)).next_task() as task:
        assert task is None
    assert [answer.sub_status for answer in told] == [SubStatus.FAILED]
    assert "cannot read" in caplog.text


def test_a_node_that_is_not_there_has_no_task(monkeypatch):
    monkeypatch.setattr(flower, "RETRY_FOR_S", 0.5)
    nobody = LocalNode(port=1, secret=b"s" * 32)
    with TaskSource(nobody).next_task() as task:
        assert task is None
    with pytest.raises(httpx.TransportError):
        _client(nobody).SendTaskHeartbeat(SendTaskHeartbeatRequest())
