"""``aecnn-client budget``: what the patients' privacy has cost so far, what is left, and when it was spent."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from aecnn.config import load_config
from aecnn.console import plain, say, say_plain, table_of
from aecnn.errors import ConfigError
from client.ledger import ADJACENCY, TRAIN, UNPROTECTED, Charge, Limit
from client.ledger_store import LedgerMark
from client.paths import SitePaths
from client.site import PrivacyPolicyConfig, SiteConfig
from client.spending import adopt_ledger, ledger_seen, limit_of, trusted_ledger
from client.state import SiteState
from client.words import counted, stage_of

if TYPE_CHECKING:  # Matplotlib takes a second to import, and only a plot needs it
    from matplotlib.axes import Axes

PLOT_SUFFIXES = (".svg", ".png", ".pdf")
_SIZE_IN = (8.0, 4.5)
_TABLE_WIDTH = 160  # characters, also where the output is a pipe: no name is broken


@dataclass(frozen=True)
class RunSpent:
    """What one run has cost."""

    run: str
    run_id: str
    rounds: int  # trained with noise
    evaluations: int  # noised histograms
    unprotected: int  # answers without noise: counts, figures or weights
    unsettled: int  # charges reserved whose answer was never kept
    epsilon: float  # of its patient who has spent most in it


@dataclass(frozen=True)
class Budget:
    """How a hospital's privacy budget stands."""

    folder: Path
    mark: LedgerMark
    num_patients: int  # in the ledger
    limit: Limit
    epsilon: float  # of the patient who has spent most; what is reserved counts
    settled_epsilon: float  # without what is reserved and was never answered
    runs: tuple[RunSpent, ...]
    charges: tuple[Charge, ...]

    @property
    def left(self) -> float:
        """What is left under the cap for the patient who has spent most."""
        return max(0.0, self.limit.max_epsilon - self.epsilon)

    @property
    def unprotected(self) -> int:
        """Answers that left without differential privacy; ε does not speak of them."""
        return sum(run.unprotected for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        """Gives plain data for JSON; an ε beyond all bounds is null."""
        return {
            "ledger": {"folder": str(self.folder), **self.mark.to_json()},
            "patients": self.num_patients,
            "adjacency": ADJACENCY,
            "delta": self.limit.delta,
            "max_epsilon": self.limit.max_epsilon,
            "epsilon": _finite(self.epsilon),
            "settled": _finite(self.settled_epsilon),
            "reserved": _finite(self.epsilon - self.settled_epsilon),
            "left": self.left,
            "unprotected_answers": self.unprotected,
            "runs": [{**vars(run), "epsilon": _finite(run.epsilon)} for run in self.runs],
            "charges": [_charge_json(charge) for charge in self.charges],
        }


def budget_of(paths: SitePaths) -> Budget:
    """Reads how the budget stands; nothing is changed.

    Raises:
        PrivacyError: The ledger is missing, or not the one that this client saw, whole.
        ConfigError: The site file is faulty, or has no policy.
    """
    policy = _policy(paths)
    ledger = trusted_ledger(policy.ledger_folder, ledger_seen(paths.audit_log, SiteState(paths.database)))
    charges, num_patients = ledger.charges(), ledger.num_patients()
    limit = limit_of(policy, otherwise=num_patients)
    run_ids = list(dict.fromkeys(charge.about.run_id for charge in charges))
    runs = []
    for run_id in run_ids:
        own = [charge for charge in charges if charge.about.run_id == run_id]
        runs.append(_run_spent(own, ledger.spent_of_run(run_id, delta=limit.delta)))
    return Budget(
        folder=policy.ledger_folder or paths.folder,
        mark=ledger.mark(),
        num_patients=num_patients,
        limit=limit,
        epsilon=ledger.spent(delta=limit.delta),
        settled_epsilon=ledger.spent(delta=limit.delta, settled_only=True),
        runs=tuple(runs),
        charges=tuple(charges),
    )


def adopt(paths: SitePaths) -> tuple[LedgerMark, bool]:
    """Makes this client use the ledger in the site file's folder, whatever it saw before; a new one where none is.

    Returns:
        How far the ledger has come, and whether it was made now.

    Raises:
        ConfigError: The site file names no folder.
        PrivacyError: The ledger that is there is damaged, or the folder is no place for one.
    """
    folder = _policy(paths).ledger_folder
    if folder is None:
        raise ConfigError(paths.site, ["policy.privacy.ledger_folder is null: name a folder on a disk of this machine"])
    return adopt_ledger(paths, folder)


def show_budget(budget: Budget, console: Console) -> None:
    """Tells how the budget stands."""
    limit = budget.limit
    rows = [
        ("ledger", f"{budget.folder} ({counted(budget.num_patients, 'patient')})"),
        ("privacy", f"ε at δ = {limit.delta:.3g}; two datasets are neighbours where {ADJACENCY}"),
        ("spent", f"{_said(budget.epsilon)} of {limit.max_epsilon:g}, by the patient who has spent most"),
        ("left", _said(budget.left)),
    ]
    if budget.epsilon > budget.settled_epsilon:
        more = _said(budget.epsilon - budget.settled_epsilon)
        rows.insert(3, ("reserved", f"{more} of it, by answers that were begun and not given yet; it counts as spent"))
    if budget.unprotected:
        answers = counted(budget.unprotected, "answer")
        rows.append(("unprotected", f"{answers} left without differential privacy; ε speaks of the others only"))
    for label, text in rows:
        say_plain(console, f"{label:<12}{text}")
    if budget.runs:
        console.print(_table(budget.runs), width=max(console.width, _TABLE_WIDTH), soft_wrap=True)
    else:
        say(console, "nothing was trained yet")


def plot_budget(budget: Budget, path: Path) -> None:
    """Draws ε over the answers, in the order in which they were reserved: in total, and of each run.

    Args:
        budget: What to draw.
        path: A file that ends with one of `PLOT_SUFFIXES`.

    Raises:
        ConfigError: It ends otherwise, or cannot be written.
    """
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise ConfigError(
            "--plot", [f"{path.name!r} does not end with {' or '.join(PLOT_SUFFIXES)}: give another name"]
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=_SIZE_IN, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = [charge for charge in budget.charges if charge.epsilon is not None]
    places = range(1, len(drawn) + 1)
    _steps(axes, [(0, 0.0), *_rising(places, [charge.epsilon for charge in drawn])], label="all runs", color="black")
    for run_id in dict.fromkeys(charge.about.run_id for charge in drawn):
        own = [(place, charge) for place, charge in zip(places, drawn, strict=True) if charge.about.run_id == run_id]
        points = _rising([place for place, _ in own], [charge.run_epsilon for _, charge in own])
        marks = {"marker": "o", "markersize": 3, "markevery": list(range(len(own)))}  # none where the line only goes on
        _steps(axes, [*points, (len(drawn), points[-1][1])], label=own[0][1].about.run, **marks)
    axes.axhline(budget.limit.max_epsilon, color="tab:red", linestyle="--", label="policy.privacy.max_epsilon")
    deltas = sorted({charge.delta for charge in drawn if charge.delta is not None})
    at = ", ".join(f"{delta:.3g}" for delta in deltas) or f"{budget.limit.delta:.3g}"
    axes.set(xlabel="answers with noise, in order of time", ylabel=f"ε at δ = {at}", ylim=(0.0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"ε of the patient who has spent most ({ADJACENCY})", fontsize="medium")
    axes.legend(fontsize="small")
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError("--plot", [f"{path} cannot be written ({error.strerror}): give another place"]) from error


def _run_spent(own: Sequence[Charge], epsilon: float) -> RunSpent:
    settled = [charge for charge in own if charge.content is not None]
    protected = [charge for charge in settled if charge.is_protected]
    rounds = len({charge.about.round for charge in protected if charge.what == TRAIN})
    return RunSpent(
        run=own[0].about.run,
        run_id=own[0].about.run_id,
        rounds=rounds,
        evaluations=sum(charge.what not in (TRAIN, UNPROTECTED) for charge in protected),
        unprotected=len({charge.about for charge in settled if not charge.is_protected}),
        unsettled=len(own) - len(settled),
        epsilon=epsilon,
    )


def _table(runs: Sequence[RunSpent]) -> Any:
    table = table_of("run", "rounds", "evaluations", "reserved", "unprotected", "ε")
    for run in runs:
        counts = (run.rounds, run.evaluations, run.unsettled, run.unprotected)
        table.add_row(plain(f"{run.run} ({run.run_id})"), *map(str, counts), _said(run.epsilon))
    return table


def _charge_json(charge: Charge) -> dict[str, Any]:
    about, mechanism = charge.about, charge.mechanism
    return {
        "run": about.run,
        "run_id": about.run_id,
        "round": about.round,
        "stage": stage_of(about.kind, about.round),
        "what": charge.what,
        "state": "reserved" if charge.content is None else "settled",
        "noise_multiplier": mechanism.noise_multiplier,
        "sample_rate": mechanism.sample_rate,
        "steps": mechanism.steps,
        "delta": charge.delta,
        "epsilon": charge.epsilon,
        "run_epsilon": charge.run_epsilon,
        "reserved_at": charge.reserved_at,
        "settled_at": charge.settled_at,
    }


def _policy(paths: SitePaths) -> PrivacyPolicyConfig:
    policy = load_config(paths.site, SiteConfig).policy
    if policy is None:
        raise ConfigError(paths.site, ["has no policy, so nothing leaves and nothing is spent: add one"])
    return policy.privacy


def _rising(places: Iterable[int], values: Iterable[float | None]) -> list[tuple[int, float]]:
    """The largest value so far at each place: a charge's is of its own cohort."""
    return list(zip(places, accumulate((value or 0.0 for value in values), max), strict=True))


def _steps(axes: "Axes", points: Sequence[tuple[int, float]], **style: Any) -> None:
    axes.step([place for place, _ in points], [epsilon for _, epsilon in points], where="post", **style)


def _said(epsilon: float) -> str:
    return f"{epsilon:.2f}" if math.isfinite(epsilon) else "beyond all bounds"


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None
