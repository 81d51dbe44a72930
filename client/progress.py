"""What the client is doing now, in one small file for ``aecnn-client status`` and the lines of ``start``."""

import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aecnn.contract import Request
from client.deployment import Deployment

IDLE, STOPPED = "idle", "stopped"
_INTERVAL_S = 1.0


@dataclass
class Progress:
    """Tells how far the answer to one request is; tells nobody in a simulation."""

    status: Path | None
    request: Request | None
    kind: str = ""  # message type
    completed: dict[str, Any] | None = None  # the run that ended last, until another one asks something
    _phase: str = IDLE
    _since: str = ""
    _told_at: float = field(default=-_INTERVAL_S)

    @classmethod
    def of(cls, deployment: Deployment | None, request: Request) -> "Progress":
        """Gives the progress of one request at a hospital, or of a simulated one."""
        if deployment is None:
            return cls(None, request)
        return cls(deployment.paths.status, request, deployment.kind)

    def tell(self, phase: str) -> None:
        """Tells what begins now."""
        self._phase, self._since = phase, _now()
        self._write({})

    def tell_step(self, done: int, total: int) -> None:
        """Tells the steps of a training, at most once a second."""
        if self._phase != "training":
            self._phase, self._since = "training", _now()
        if done < total and time.monotonic() - self._told_at < _INTERVAL_S:
            return
        self._told_at = time.monotonic()
        self._write({"steps_done": done, "steps": total})

    def _write(self, more: dict[str, Any]) -> None:
        if self.status is None:
            return
        asked = self.request
        what: dict[str, Any] = {}
        if asked is not None:
            what = {"kind": self.kind, "run": asked.run, "run_id": asked.run_id, "round": asked.round}
        elif self.completed is not None:
            what = {"completed": self.completed}
        document = {"phase": self._phase, **what, **more, "since": self._since, "updated_at": _now()}
        # Not durable on purpose: it is rewritten every second and means nothing after a crash.
        partial = self.status.with_name(f".{self.status.name}.partial")
        partial.write_text(json.dumps(document), encoding="utf-8")
        partial.replace(self.status)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
