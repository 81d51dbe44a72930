"""Where the app runs inside the hospital's worker, which alone keeps an audit log and remembers what it answered.

The worker says so in the node's settings; a simulated hospital has neither folder nor memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aecnn.contract import AuditHead
from client.paths import SitePaths

_SITE, _LENGTH, _HEAD, _REQUEST, _KIND = "site", "audit-length", "audit-head", "request-digest", "message-type"
_EPSILON = "epsilon"


@dataclass(frozen=True)
class Deployment:
    """One message at a hospital that is not simulated."""

    paths: SitePaths
    head: AuditHead  # of the audit log, once the message is in it
    request: str  # digest of what is asked
    kind: str  # message type
    epsilon: float | None = None  # of the run's training with this answer, by the ledger, at the promise's δ


def node_settings(deployment: Deployment) -> dict[str, bool | float | int | str]:
    """Gives the node's settings that say so."""
    head = deployment.head
    return {
        _SITE: str(deployment.paths.site),
        _LENGTH: head.length,
        _HEAD: head.head,
        _REQUEST: deployment.request,
        _KIND: deployment.kind,
        **({} if deployment.epsilon is None else {_EPSILON: deployment.epsilon}),
    }


def deployment_of(node_config: Mapping[str, object]) -> Deployment | None:
    """Gives what the worker said, None in a simulation."""
    if _HEAD not in node_config:
        return None
    return Deployment(
        paths=SitePaths(Path(str(node_config[_SITE])).parent),
        head=AuditHead(length=int(str(node_config[_LENGTH])), head=str(node_config[_HEAD])),
        request=str(node_config[_REQUEST]),
        kind=str(node_config[_KIND]),
        epsilon=float(str(node_config[_EPSILON])) if _EPSILON in node_config else None,
    )
