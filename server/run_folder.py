"""The folder of one run: configuration, history, released model, figures and report.

`history.jsonl` has one JSON object a line and only grows; a reader can follow it while the run goes on.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aecnn.errors import FederationError


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and the ways to write into it."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def history_file(self) -> Path:
        """One event a line."""
        return self.path / "history.jsonl"

    @property
    def checkpoint_file(self) -> Path:
        """The released global model."""
        return self.path / "global.safetensors"

    @property
    def store_file(self) -> Path:
        """What an interrupted run goes on from; absent before a run and after its end (hidden: no one opens it)."""
        return self.path / ".run.sqlite"

    @property
    def spool_folder(self) -> Path:
        """Weights under way; absent after the end."""
        return self.path / "spool"

    @property
    def is_resumable(self) -> bool:
        """Whether a run lies here that has not come to its end."""
        return self.store_file.exists()

    @property
    def hospitals_folder(self) -> Path:
        """The simulated hospitals' site files."""
        return self.path / "hospitals"

    @staticmethod
    def refuse_used(path: Path) -> None:
        """Refuses a folder that is there and not empty.

        Raises:
            FederationError: It is.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FederationError(f"{path} holds something already: give another --out, or remove it")

    @classmethod
    def create(cls, path: Path) -> "RunFolder":
        """Makes the folder of a new run.

        Raises:
            FederationError: It is there and not empty, or cannot be made.
        """
        cls.refuse_used(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FederationError(f"the run folder {path} cannot be made ({error.strerror}): give another") from error
        return cls(path.absolute())

    @classmethod
    def prepared(cls, path: Path) -> "RunFolder":
        """Opens a folder that was prepared for a run, or in which one was interrupted.

        Raises:
            FederationError: A run has finished there.
        """
        folder = cls(path.absolute())
        if folder.history_file.exists() and not folder.is_resumable:
            raise FederationError(f"{folder.path} holds a run already: give another folder")
        return folder

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Adds one event to the history, on disk before this returns."""
        line = json.dumps(event, allow_nan=False) + "\n"
        with self.history_file.open("a", encoding="utf-8") as history:
            history.write(line)
            history.flush()
            os.fsync(history.fileno())

    @property
    def history_bytes(self) -> int:
        """Length of the history."""
        return self.history_file.stat().st_size if self.history_file.exists() else 0

    def cut_history(self, num_bytes: int) -> None:
        """Removes what was written after the history had this length."""
        if self.history_bytes > num_bytes:
            os.truncate(self.history_file, num_bytes)

    def events(self) -> list[dict[str, Any]]:
        """Gives the events of the history; a line without its break was written half, and is left out."""
        if not self.history_file.exists():
            return []
        text = self.history_file.read_text(encoding="utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def ended(self) -> dict[str, Any] | None:
        """Gives the event with which the run ended; None where it goes on, or was resumed after it."""
        for event in reversed(self.events()):
            if event["event"] in ("end", "resume"):
                return event if event["event"] == "end" else None
        return None

    def write_json(self, name: str, document: Mapping[str, Any] | Sequence[Any]) -> Path:
        """Writes a JSON file whole or not at all."""
        return self.write_text(name, json.dumps(document, indent=2, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> Path:
        """Writes a text file whole or not at all."""
        return self.write_whole(name, lambda partial: partial.write_text(text, encoding="utf-8"))

    def write_whole(self, name: str, write: Callable[[Path], object]) -> Path:
        """Has `write` fill a file beside the target, then puts it in the target's place."""
        target = self.path / name
        partial = target.with_name(f".partial-{name}")
        write(partial)
        os.replace(partial, target)
        return target


def now_iso() -> str:
    """Gives the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
