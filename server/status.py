"""What a run is doing now, for those who follow it: ``flower-server status`` and the live table."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from server.run_folder import now_iso

StatusPhase = Literal["joining", "waiting", "round", "closing", "testing", "delivering", "done", "failed"]
OnStatus = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class RunStatus:
    """One moment of a run."""

    run: str  # the folder's name
    run_id: str
    num_rounds: int
    phase: StatusPhase = "joining"
    round: int = 0
    attempt: int = 1
    asked: tuple[str, ...] = ()
    answered: tuple[str, ...] = ()
    online: tuple[str, ...] = ()
    deadline_at: str | None = None  # ISO 8601
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Gives plain data for JSON."""
        lists = {"asked": list(self.asked), "answered": list(self.answered), "online": list(self.online)}
        return {**vars(self), **lists, "updated_at": now_iso()}


class StatusBoard:
    """The newest status, told on whenever it changes."""

    def __init__(self, status: RunStatus, on_status: OnStatus | None) -> None:
        self.status = status
        self._on_status = on_status
        self._tell()

    def show(self, status: RunStatus) -> None:
        """Replaces the status."""
        if status != self.status:
            self.status = status
            self._tell()

    def _tell(self) -> None:
        if self._on_status is not None:
            self._on_status(self.status.to_json())


def iso_in(seconds: float) -> str:
    """Gives the time so many seconds from now, in UTC."""
    return (datetime.now(UTC) + timedelta(seconds=min(seconds, 1e9))).isoformat(timespec="seconds")
