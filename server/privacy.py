"""What differential privacy costs the patients of each hospital, as the centre composes it from what it was told.

It is composed over the answers that came, averaged or not, by the accountant that the hospitals use: the same number
as in a hospital's log. Where a hospital's ledger tells it, that is shown: it may be more, after answers that came too
late.

Each answer's event holds what is needed to compose again, so that a resumed run reads its history and goes on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aecnn.config import Plan
from aecnn.contract import HospitalCounts, RoundReport
from aecnn.errors import PrivacyError
from aecnn.privacy_config import Accountant, evaluated_rounds
from aecnn.training.privacy.accounting import LARGEST_EPSILON, Mechanism, epsilon_of
from aecnn.training.privacy.promise import Promise, promise_of
from server.words import counted

ADJACENCY = "one patient added or removed"
_LESS_NOISE = 1e-3  # relative: what two machines' solvers may differ by in the noise for one ε

Event = dict[str, Any]


def promise_to(counts: HospitalCounts, plan: Plan) -> Promise | None:
    """Gives what a plan promises the patients of a hospital, by the number it declared; None without privacy.

    Raises:
        PrivacyError: It declared nobody, or too many for the plan's δ.
    """
    if plan.training.privacy is None:
        return None
    if counts.num_train_patients < 1:
        raise PrivacyError("it declared no training patient when it joined")
    return promise_of(plan, declared_patients=counts.num_train_patients)


def fault_of_report(report: RoundReport, *, counts: HospitalCounts, plan: Plan) -> str | None:
    """Gives why what a report says of privacy is not what the plan asks, or None.

    Args:
        report: Of one round.
        counts: What the hospital declared when it joined.
        plan: The run's.
    """
    privacy = plan.training.privacy
    if privacy is None:
        return "its report tells of differential privacy, and the plan has none" if report.is_private else None
    if report.noise_multiplier is None:
        return "its report tells of no differential privacy, and the plan trains with it"
    try:
        promise = promise_to(counts, plan)
    except PrivacyError as error:
        return str(error)
    if promise is None:
        return "the plan does not say how many steps a round has"
    if privacy.noise_multiplier is None:  # the noise is solved for the plan's ε; more of it does nobody harm
        least = promise.noise_multiplier * (1.0 - _LESS_NOISE)
        has_noise, wanted_noise = report.noise_multiplier >= least, f"at least {promise.noise_multiplier:.6g}"
    else:
        has_noise, wanted_noise = report.noise_multiplier == privacy.noise_multiplier, f"{privacy.noise_multiplier:g}"
    told = [
        ("noise-multiplier", report.noise_multiplier, has_noise, wanted_noise),
        ("sample-rate", report.sample_rate, report.sample_rate == privacy.sample_rate, f"{privacy.sample_rate:g}"),
        ("delta", report.delta, report.delta == promise.delta, f"{promise.delta:g}"),
        ("num-steps", report.num_steps, report.num_steps == promise.steps_per_round, f"{promise.steps_per_round}"),
    ]
    odd = [
        f"{name} {value:g}, and the plan asks for {wanted}"
        for name, value, is_planned, wanted in told
        if not is_planned
    ]
    return f"its report says {'; '.join(odd)}" if odd else None


def is_judged_in(round_number: int, *, plan: Plan, num_rounds: int) -> bool:
    """Whether hospitals judge the model that arrives in a round; under privacy each judgement costs some.

    Args:
        round_number: The number after the last round's stands for the evaluation that follows it.
        plan: The run's.
        num_rounds: Of the run.
    """
    privacy = plan.training.privacy
    if privacy is None:
        return True
    evaluation = privacy.evaluation
    return evaluation is not None and round_number in evaluated_rounds(evaluation.every_rounds, num_rounds)


@dataclass
class _Account:
    """What one hospital's answers cost."""

    training: list[Mechanism] = field(default_factory=list)
    evaluation: list[Mechanism] = field(default_factory=list)
    delta: float = 0.0  # the largest that was told
    told_epsilon: float | None = None  # the largest that its ledger told


class Spending:
    """What the hospitals' patients have spent in this run, from the events of their answers.

    Training patients and validation patients are different people, so each pays for one of the two.
    """

    def __init__(self, accountant: Accountant, events: Iterable[Mapping[str, Any]] = ()) -> None:
        self._accountant = accountant
        self._accounts: dict[str, _Account] = {}
        for event in events:
            if event["event"] == "answer":
                self.add(event)

    def add(self, event: Mapping[str, Any]) -> None:
        """Takes in the event of an answer; one without a cost changes nothing."""
        cost: Mapping[str, Any] = event.get("cost") or {}
        if not cost:
            return
        account = self._accounts.setdefault(event["hospital"], _Account())
        account.delta = max(account.delta, cost["delta"])
        if cost["noise_multiplier"] is not None:
            account.training.append(Mechanism(cost["noise_multiplier"], cost["sample_rate"], cost["steps"]))
            if cost["ledger_epsilon"] is not None:
                account.told_epsilon = max(account.told_epsilon or 0.0, cost["ledger_epsilon"])
        if cost["evaluation_noise_multiplier"] is not None:
            account.evaluation.append(Mechanism(cost["evaluation_noise_multiplier"], 1.0, 1))

    def of(self, hospital: str) -> Event | None:
        """Gives what a hospital's patients have spent, as plain data; None for nothing.

        An ε that is null is beyond any promise.
        """
        account = self._accounts.get(hospital)
        if account is None:
            return None
        newest = account.training[-1] if account.training else None
        told = account.told_epsilon
        epsilon = self._composed(account.training, account.delta) if told is None else told
        return {
            "epsilon": _finite(epsilon),
            "delta": account.delta,
            "noise_multiplier": None if newest is None else newest.noise_multiplier,
            "sample_rate": None if newest is None else newest.sample_rate,
            "steps": sum(mechanism.steps for mechanism in account.training),
            "evaluations": len(account.evaluation),
            "evaluation_epsilon": _finite(self._composed(account.evaluation, account.delta)),
        }

    def by_hospital(self) -> dict[str, Event]:
        """Gives all that spent something, in order."""
        found = {name: self.of(name) for name in sorted(self._accounts)}
        return {name: spent for name, spent in found.items() if spent is not None}

    def _composed(self, mechanisms: list[Mechanism], delta: float) -> float:
        return epsilon_of(mechanisms, delta=delta, accountant=self._accountant) if mechanisms else 0.0


def cost_of(report: RoundReport | None, *, promise: Promise, is_judged: bool) -> Event | None:
    """Gives what one answer cost, as its event holds it; None for nothing.

    Args:
        report: Of the training, where the answer has one, as the plan asks it.
        promise: To this hospital's patients.
        is_judged: Whether the answer has a noised histogram.
    """
    evaluation = promise.evaluation if is_judged else None
    if report is None and evaluation is None:
        return None
    return {
        "delta": promise.delta,
        "noise_multiplier": None if report is None else report.noise_multiplier,
        "sample_rate": None if report is None else report.sample_rate,
        "steps": 0 if report is None else report.num_steps,
        "ledger_epsilon": None if report is None else report.epsilon,
        "evaluation_noise_multiplier": None if evaluation is None else evaluation.noise_multiplier,
    }


def epsilon_named(epsilon: float | None) -> str:
    """Gives an ε to two decimals, as hospitals' ledgers do; null is beyond any promise."""
    return f"over {LARGEST_EPSILON:,.0f}" if epsilon is None else f"{epsilon:.2f}"


def spent_in_words(spent: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Gives the largest ε over the hospitals in one line; None where nobody spent anything."""
    trained = [of_one for of_one in spent.values() if of_one["steps"]]
    if not trained:
        return None
    largest = max(trained, key=lambda of_one: (of_one["epsilon"] is None, of_one["epsilon"] or 0.0))
    whose = f"largest of {counted(len(trained), 'hospital')}" if len(trained) > 1 else "of the one hospital"
    return f"ε {epsilon_named(largest['epsilon'])} at δ {largest['delta']:.3g} ({whose}; {ADJACENCY})"


def _finite(epsilon: float) -> float | None:
    return epsilon if epsilon <= LARGEST_EPSILON else None
