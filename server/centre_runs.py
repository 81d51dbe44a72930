"""The runs of a federation folder: which comes next, which goes on, and what became of each.

A *plan* is the list of run folders since ``start`` began anew. A run without an end in its history is the one that
goes on, so that a restart needs nothing but the folder.
"""

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from aecnn.config import dump_config, load_config, validate_config
from aecnn.enrolment import whole_file
from aecnn.errors import ConfigError
from aecnn.strict_model import StrictModel
from server.run_folder import RunFolder
from server.settings import CentrePaths, ServerConfig

log = logging.getLogger(__name__)

# A run that has begun keeps its science; how long it waits and for how many may be changed.
CHANGEABLE = ("join_timeout_s", "round_timeout_s", "min_hospitals", "max_failed_rounds")


class PlannedRuns(StrictModel):
    """The run folders since ``start`` began anew, by name."""

    format_version: Literal[1] = 1
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunSummary:
    """One run, as its folder tells it; None where it is not known."""

    run: str
    run_id: str | None  # by which the hospitals know it; None before they joined
    status: str  # completed, failed, or unfinished
    started_at: str | None
    hospitals: tuple[str, ...]
    num_rounds: int | None
    rounds_done: int
    released_round: int | None
    validation_macro_auroc: float | None  # of the released model, else of the newest judged one
    test_macro_auroc: float | None
    seconds: float | None
    reason: str | None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def begin_plan(paths: CentrePaths, *, num_runs: int, anew: bool) -> PlannedRuns:
    """Gives the plan that is under way, or an empty one where none is or `anew` is wanted."""
    plan = PlannedRuns() if anew else read_plan(paths)
    if _num_done(paths, plan) >= num_runs:
        plan = PlannedRuns()
    _write_plan(paths, plan)
    return plan


def next_run(paths: CentrePaths, config: ServerConfig) -> tuple[RunFolder, ServerConfig] | None:
    """Gives the run to go on with, or a new one; None where all are done.

    Raises:
        ConfigError: The configuration of the run to go on with is damaged.
    """
    plan = read_plan(paths)
    if plan.runs and _goes_on(RunFolder(paths.runs / plan.runs[-1])):
        folder = RunFolder(paths.runs / plan.runs[-1])
        if folder.config_file.exists() and any(event["event"] == "start" for event in events_of(folder.path)):
            return folder, _as_begun(load_config(folder.config_file, ServerConfig), config)
    else:
        if _num_done(paths, plan) >= config.num_runs:
            return None
        folder = RunFolder(paths.runs / _new_name(paths, config))
        plan = PlannedRuns(runs=(*plan.runs, folder.path.name))
        _write_plan(paths, plan)
    seed = config.seed + _num_done(paths, plan)
    own = config.model_copy(update={"seed": seed, "num_runs": 1})
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_text(folder.config_file.name, dump_config(own))
    return folder, own


def _goes_on(folder: RunFolder) -> bool:
    """Tells whether a run has not ended, or has left something to do: rounds after a failure, or the delivery."""
    return folder.is_resumable or outcome(folder.path) is None


def read_plan(paths: CentrePaths) -> PlannedRuns:
    """Reads the plan; an absent file is an empty one.

    Raises:
        ConfigError: It is damaged.
    """
    try:
        document = json.loads(paths.plan.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return PlannedRuns()
    except (OSError, ValueError) as error:
        raise ConfigError(paths.plan, [f"cannot be read ({error}): remove it to begin a new run"]) from error
    return validate_config(document, PlannedRuns, subject=paths.plan)


def _write_plan(paths: CentrePaths, plan: PlannedRuns) -> None:
    with whole_file(paths.plan) as partial:
        partial.write_text(plan.model_dump_json() + "\n", encoding="utf-8")


def _num_done(paths: CentrePaths, plan: PlannedRuns) -> int:
    folders = [RunFolder(paths.runs / name) for name in plan.runs]
    return sum(outcome(folder.path) == "completed" and not _goes_on(folder) for folder in folders)


def _new_name(paths: CentrePaths, config: ServerConfig) -> str:
    """A name that is not taken; runs that follow within a second get a number."""
    stem = f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 100))]
    return next(name for name in names if not (paths.runs / name).exists())


def _as_begun(begun: ServerConfig, now: ServerConfig) -> ServerConfig:
    """The configuration a run began with, but for what may be changed meanwhile."""
    waiting = {key: getattr(now.federation, key) for key in CHANGEABLE}
    goes_on = begun.model_copy(
        update={
            "accepted_fingerprints": now.accepted_fingerprints,
            "test_data": now.test_data,
            "federation": begun.federation.model_copy(update=waiting),
        }
    )
    changed = [
        key for key in ("federation", "images", "model", "training") if getattr(goes_on, key) != getattr(now, key)
    ]
    if changed:
        log.warning(
            "server.yaml changed since this run began (%s); it goes on as it began. "
            "`flower-server start --new` begins a new run",
            ", ".join(changed),
        )
    return goes_on


def events_of(run: Path) -> Iterator[dict[str, Any]]:
    """Gives the events of a run's history; a line that was cut by a crash is passed over."""
    try:
        lines = (run / "history.jsonl").read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event


def end_of(events: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Gives the event with which a run ended, empty where it has not, or went on after it."""
    marks = [event for event in events if event["event"] in ("start", "resume", "end")]
    return marks[-1] if marks and marks[-1]["event"] == "end" else {}


def outcome(run: Path) -> str | None:
    """Gives ``completed`` or ``failed``, None where a run has not ended."""
    return end_of(events_of(run)).get("status")


def summaries(paths: CentrePaths) -> list[RunSummary]:
    """Gives all runs of the folder, the oldest first."""
    if not paths.runs.is_dir():
        return []
    return [summary_of(run) for run in sorted(paths.runs.iterdir()) if (run / "config.yaml").is_file()]


def newest_run(paths: CentrePaths) -> Path | None:
    """Gives the folder of the newest run."""
    found = summaries(paths)
    return paths.runs / found[-1].run if found else None


def summary_of(run: Path) -> RunSummary:
    """Reads what a run's folder tells of it."""
    events = list(events_of(run))
    start: Mapping[str, Any] = next((event for event in events if event["event"] == "start"), {})
    joined = [event["hospital"] for event in events if event["event"] == "joined"]
    end = end_of(events)
    aurocs = {event["round"]: event.get("macro_auroc") for event in events if event["event"] == "validation"}
    released = end.get("released_round")
    judged = max(aurocs, default=None)
    try:
        num_rounds: int | None = load_config(run / "config.yaml", ServerConfig).federation.num_rounds
    except ConfigError:
        num_rounds = None  # of another version
    return RunSummary(
        run=run.name,
        run_id=start.get("run_id"),
        status=end.get("status", "unfinished"),
        started_at=start.get("started_at"),
        hospitals=tuple(dict.fromkeys([*start.get("hospitals", ()), *joined])),
        num_rounds=num_rounds,
        rounds_done=max((event["round"] for event in events if event["event"] == "round"), default=0),
        released_round=released,
        validation_macro_auroc=aurocs.get(released if released is not None else judged),
        test_macro_auroc=_test_auroc(run),
        seconds=end.get("seconds"),
        reason=end.get("reason"),
    )


def _test_auroc(run: Path) -> float | None:
    try:
        value = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["macro_auroc"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if value is None else float(value)
