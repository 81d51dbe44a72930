"""How the SuperNode stands with the centre, read from its log: Flower 1.39 tells it nowhere else."""

from pathlib import Path
from typing import Literal

from client.paths import SitePaths

_TAIL_BYTES = 100_000
BEGIN_OF_LOG = "aecnn-client start"
NodeState = Literal["starting", "connected", "unreachable", "refused", "ended"]
_SIGNS: tuple[tuple[str, NodeState], ...] = (  # what Flower 1.39 writes into the SuperNode's log
    (BEGIN_OF_LOG, "starting"),
    ("Starting Flower SuperNode", "starting"),
    ("SuperNode ID:", "connected"),
    ("Connection successful", "connected"),
    ("Received successfully", "connected"),
    ("Sent successfully", "connected"),
    ("Connection attempt failed", "unreachable"),
    ("handshake error", "unreachable"),
    ("Failed to activate SuperNode", "refused"),
    ("terminated gracefully", "ended"),
)


def node_state(log_text: str) -> NodeState:
    """Tells from a SuperNode's log how it stands with the centre: the last sign counts.

    One that ends by itself without having connected was refused: Flower does so where a signature is not accepted.
    """
    state: NodeState = "starting"
    for line in log_text.splitlines():
        told = next((told for sign, told in _SIGNS if sign in line), state)
        state = "refused" if told == "ended" and state in ("starting", "unreachable", "refused") else told
    return state


def supernode_log(paths: SitePaths) -> str:
    """Gives the end of the running SuperNode's log, over the seam where a long one was put aside."""
    log = paths.logs / "supernode.log"
    return "".join(_tail(path) for path in (log.with_name(f"{log.name}.1"), log))


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
