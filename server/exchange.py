"""Asking hospitals and collecting their answers over Flower's grid, each as it comes."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from server.wire import Answer, AnswerError, read_answer

POLL_INTERVAL_S = 0.2


@dataclass
class Collected:
    """The answers to one set of messages, and what came instead of an answer."""

    answers: dict[str, Answer] = field(default_factory=dict)  # by hospital
    refused: dict[str, str] = field(default_factory=dict)  # hospital or node → reason
    missing: list[str] = field(default_factory=list)  # asked and not heard of by the deadline


def wait_for_nodes(grid: Grid, *, at_least: int, timeout_s: float) -> list[int]:
    """Gives the connected nodes once there are enough, or those there are at the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= at_least or time.monotonic() >= deadline:
            return nodes
        time.sleep(POLL_INTERVAL_S)


def ask(
    grid: Grid,
    requests: Mapping[int, tuple[str, RecordDict]],
    *,
    group: str,
    names: Mapping[int, str],
    timeout_s: float,
    on_answer: Callable[[Answer], None] | None = None,
) -> Collected:
    """Sends one message to each node and collects what comes back until the deadline.

    Args:
        grid: Flower's grid.
        requests: Message type and content for each node.
        group: The round, for Flower's logs.
        names: Hospital of each node, where it is known already.
        timeout_s: Seconds to wait in all.
        on_answer: Called with each answer as it comes.
    """
    collected = Collected()
    waiting = set(requests)
    for reply in _replies(grid, requests, group=group, timeout_s=timeout_s):
        node = reply.metadata.src_node_id
        waiting.discard(node)
        name = names.get(node, f"node {node}")
        try:
            answer = read_answer(reply)
        except AnswerError as error:
            collected.refused[name] = str(error)
            continue
        if node in names and answer.origin.hospital != names[node]:
            collected.refused[name] = f"now calls itself {answer.origin.hospital!r}"
        elif answer.origin.hospital in collected.answers:
            collected.refused[name] = f"a second node calls itself {answer.origin.hospital!r}"
        else:
            collected.answers[answer.origin.hospital] = answer
            if on_answer is not None:
                on_answer(answer)
    collected.missing = sorted(names.get(node, f"node {node}") for node in waiting)
    return collected


def _replies(
    grid: Grid, requests: Mapping[int, tuple[str, RecordDict]], *, group: str, timeout_s: float
) -> Iterable[Message]:
    messages = [Message(content, node, kind, group_id=group) for node, (kind, content) in sorted(requests.items())]
    pending = {message_id for message_id in grid.push_messages(messages) if message_id}
    deadline = time.monotonic() + timeout_s
    while pending:
        replies = list(grid.pull_messages(sorted(pending)))
        for reply in replies:
            pending.discard(reply.metadata.reply_to_message_id)
            yield reply
        if replies:
            continue  # as long as answers are there they are taken; a grid in this process computes them on being asked
        if time.monotonic() >= deadline:
            return
        time.sleep(POLL_INTERVAL_S)
