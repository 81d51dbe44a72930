"""The released model's card: what it is, what it was trained on in counts, how it scores, what it is not for.

It holds what the run knows and nothing else: counts by hospital, never an image or a patient.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from aecnn.config import FederationConfig, Plan
from aecnn.contract import RELEASED_MODEL, code_fingerprint
from aecnn.evaluation.bootstrap import often_undefined
from aecnn.evaluation.metrics import Metrics
from aecnn.evaluation.report.basis import SMALL_NUM_IMAGES, Basis, validation_basis, validation_of
from aecnn.evaluation.report.events import Validation
from aecnn.evaluation.report.history import history_of
from aecnn.evaluation.report.scores import FindingScores
from aecnn.evaluation.report.words import bound, share
from aecnn.findings import FINDINGS
from server.central_privacy import epsilon_of_rounds
from server.history import Event, counts_told
from server.judgement import BY_IMAGE, BY_PATIENT, NO_SUMS
from server.members import Member
from server.privacy import ADJACENCY, epsilon_named, spent_in_words
from server.run_folder import RunFolder, now_iso
from server.settings import RunSettings
from server.store import Candidate

CARD_JSON, CARD_MARKDOWN = "model_card.json", "model_card.md"
NO_INTERVAL = {  # of a mean, where the findings have some
    BY_PATIENT: ", without an interval (of some finding all images with it, or without it, are of one patient, "
    "or all are in order)",
    BY_IMAGE: ", without an interval (not every hospital gave its sums by patient)",
}
LIMITS = (
    "For research. Not for clinical use: it is no medical device, and no one has examined it as one.",
    "Trained on chest radiographs of the hospitals named here, scored on these or on the centre's; elsewhere it may do "
    "worse.",
    "Findings may have been labelled from reports by software, and such labels are wrong at times.",
    "AUROC says how well images are ordered; the probabilities are not calibrated.",
)


def write_model_card(
    folder: RunFolder,
    settings: RunSettings,
    members: Mapping[str, Member],
    released: Candidate,
    *,
    judged: Event | None,
    test: Metrics | None,
    privacy: Mapping[str, Event],
) -> None:
    """Writes ``model_card.json`` and the same in words, ``model_card.md``.

    Args:
        folder: The run's.
        settings: The run's.
        members: Who took part.
        released: The round whose model is released.
        judged: The history's event about it, with intervals; None where there is none.
        test: How it scores on the centre's test images, where it has some.
        privacy: What each hospital's patients have spent (`server.privacy.Spending`); empty without.
    """
    validation = _validation(folder, released, judged) | _intervals(judged)
    card = _card(settings, members, released, validation=validation, test=test)
    card["privacy"] = _privacy(settings, privacy)
    folder.write_json(CARD_JSON, card)
    folder.write_text(CARD_MARKDOWN, _in_words(card, settings.plan, settings.federation))


def _validation(folder: RunFolder, released: Candidate, judged: Event | None) -> dict[str, Any]:
    """The released model's validation as the history tells it, with what it stands on; undefined or unknown is None."""
    history = history_of(folder.history_file.read_text(encoding="utf-8"), [])
    event = validation_of(history, round_number=released.round_number)
    basis = None if event is None else validation_basis(history, event)
    return {
        "macro_auroc": released.validation_macro_auroc,
        "macro_auroc_error_bound": None if event is None else event.macro_auroc_error_bound,
        "is_noised": event is not None and event.is_noised,
        "num_images": None if basis is None else basis.num_images,
        "num_patients": None if basis is None else basis.num_patients,
        "num_hospitals": None if basis is None else basis.num_hospitals,
        "findings": {} if event is None else event.findings,
        "why_undefined": {} if event is None else _why_undefined(event, judged),
    }


def _why_undefined(event: Validation, judged: Event | None) -> dict[str, str]:
    """Why the findings that have no pooled AUROC have none."""
    reasons = {}
    for name, auroc in event.findings.items():
        counts = {} if judged is None else judged["findings"][name]
        scores = FindingScores(auroc, num_positive=counts.get("num_positive"), num_negative=counts.get("num_negative"))
        reasons[name] = scores.why_not_pooled(is_judged=judged is not None, is_noised=event.is_noised)
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _intervals(judged: Event | None) -> dict[str, Any]:
    """How sure the validation figures are, and what each hospital withheld of them; None where it is not known."""
    if judged is None:
        return dict.fromkeys(("macro_auroc_ci", "interval", "auroc_ci", "mode", "withheld"))
    return {
        "macro_auroc_ci": judged["macro_auroc_ci"],
        "interval": judged["interval"],
        "auroc_ci": {name: figures["auroc_ci"] for name, figures in judged["findings"].items()},
        "mode": judged["mode"],
        "withheld": judged["withheld"],
    }


def _card(
    settings: RunSettings,
    members: Mapping[str, Member],
    released: Candidate,
    *,
    validation: dict[str, Any],
    test: Metrics | None,
) -> dict[str, Any]:
    is_private = settings.plan.training.privacy is not None
    hospitals = {
        name: {
            key: told
            for key, told in counts_told(member.counts, is_private=is_private).items()
            if key not in ("num_skipped_images", "positives")
        }
        | {"left": member.left}
        for name, member in sorted(members.items())
    }
    return {
        "format_version": 1,
        "file": RELEASED_MODEL,
        "run": settings.name,
        "released_at": now_iso(),
        "released_round": released.round_number,
        "num_rounds": settings.federation.num_rounds,
        "strategy": settings.federation.strategy.name,
        "seed": settings.seed,
        "code_fingerprint": code_fingerprint(),
        "plan": settings.plan.model_dump(mode="json"),
        "findings": list(FINDINGS),
        "hospitals": hospitals,
        "figures": {
            "validation_macro_auroc": released.validation_macro_auroc,
            "validation": validation,
            "test": None if test is None else test.to_json(),
        },
        "limits": list(LIMITS),
    }


def _privacy(settings: RunSettings, spent: Mapping[str, Event]) -> Event:
    """What was promised and spent: of each patient by hospital, and of whole hospitals by noise at the centre."""
    central, num_rounds = settings.federation.central_privacy, settings.federation.num_rounds
    epsilon = None if central is None else epsilon_of_rounds(central, num_rounds)
    return {
        "patients": {
            "adjacency": ADJACENCY,
            "largest": spent_in_words(spent),
            "hospitals": {name: dict(of_one) for name, of_one in spent.items()},
        }
        if spent
        else None,
        "hospitals": {
            "adjacency": "one hospital added or removed; of the weights alone",
            "epsilon": epsilon if epsilon is not None and math.isfinite(epsilon) else None,
            "delta": central.delta,
            "noise_multiplier": central.noise_multiplier,
            "rounds": num_rounds,
        }
        if central is not None
        else None,
    }


def _privacy_in_words(privacy: Event) -> list[str]:
    patients, hospitals = privacy["patients"], privacy["hospitals"]
    if patients is None and hospitals is None:
        return ["Trained without differential privacy: the weights may tell of single patients."]
    lines = []
    if patients is not None:
        lines += [
            f"Each hospital trained with differential privacy of its patients ({patients['adjacency']}, with all their "
            "radiographs). In this run their weights cost:",
            "",
            "| hospital | ε | δ | noise multiplier | sample rate | steps | ε of the validation patients |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *(
                f"| {name} | {epsilon_named(spent['epsilon'])} | {spent['delta']:.3g} | "
                f"{_figure(spent['noise_multiplier'])} | {_figure(spent['sample_rate'])} | {spent['steps']} | "
                f"{epsilon_named(spent['evaluation_epsilon']) if spent['evaluations'] else '–'} |"
                for name, spent in patients["hospitals"].items()
            ),
            "",
            "Numbers of patients are declared, rounded as each hospital likes; nothing else of them was told.",
        ]
    if hospitals is not None:
        lines += [""] * bool(lines) + [
            "The centre added noise to the clipped average of the hospitals: "
            f"ε {epsilon_named(hospitals['epsilon'])} at δ {hospitals['delta']:.3g} "
            f"({hospitals['adjacency']}; {hospitals['rounds']} rounds, noise multiplier "
            f"{hospitals['noise_multiplier']:.4g}). Counts and figures of hospitals are not covered by it."
        ]
    return lines


def _in_words(card: dict[str, Any], plan: Plan, federation: FederationConfig) -> str:
    chosen = _how_chosen(card, federation)
    return "\n".join(
        [
            f"# {card['run']}: joint AE-CNN",
            "",
            f"The model after round {card['released_round']} of {federation.num_rounds}, {chosen}. "
            f"Its weights are in `{card['file']}`; read them with `aecnn describe --checkpoint {card['file']}`.",
            "",
            "## Model",
            "",
            f"- Input: one grey channel, {plan.images.input_size_px} × {plan.images.input_size_px} px",
            f"- Classifier: {plan.model.backbone}, {plan.model.normalisation} normalisation, on the autoencoder's code",
            f"- Output: a logit for each of {len(card['findings'])} findings, and the decoded radiograph",
            f"- Code fingerprint: `{card['code_fingerprint']}`",
            "",
            "## Training data",
            "",
            *_table_of_hospitals(card["hospitals"]),
            "",
            f"Weights were averaged with `{card['strategy']}`; images never left a hospital.",
            "",
            "## Privacy",
            "",
            *_privacy_in_words(card["privacy"]),
            "",
            "## Figures",
            "",
            *_figures(card["figures"]),
            "",
            "## Limits",
            "",
            *(f"- {limit}" for limit in card["limits"]),
            "",
        ]
    )


def _how_chosen(card: dict[str, Any], federation: FederationConfig) -> str:
    if federation.released_round == "last" or card["figures"]["validation_macro_auroc"] is None:
        return "the last"
    return "the best by the hospitals' pooled validation AUROC"


def _table_of_hospitals(hospitals: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [
        f"| {name}{' (left)' if counts['left'] else ''} | {_figure(counts['num_train_images'])} | "
        f"{_figure(counts['num_train_patients'])} | {_figure(counts['num_validation_images'])} | "
        f"{_figure(counts['num_validation_patients'])} |"
        for name, counts in hospitals.items()
    ]
    head = "| hospital | training images | training patients | validation images | validation patients |"
    return [head, "|---|---:|---:|---:|---:|", *rows]


def _figures(figures: Mapping[str, Any]) -> list[str]:
    validation, test = figures["validation"], figures["test"]
    images, patients, hospitals = (validation[f"num_{noun}"] for noun in ("images", "patients", "hospitals"))
    basis = Basis("validation", images, patients, hospitals, is_noised=validation["is_noised"])
    error = validation["macro_auroc_error_bound"]
    binned = "" if error is None else f" (binning can have moved it by {bound(error)})"
    how = validation["interval"]
    sure = _interval_in_words(validation["macro_auroc_ci"], how) or NO_INTERVAL.get(how, "")
    lines = [f"- {_named(basis)}, pooled: macro AUROC {_score(validation['macro_auroc'])}{sure}{binned}"]
    if validation["withheld"] and hospitals == 0:
        lines = ["- Validation: every hospital kept its figures to itself; see below"]
    if test is None:
        lines.append("- No test figures: the centre has no test set of its own")
    else:
        how = None if test["interval"] is None else test["interval"]["method"]
        lines.append(
            f"- {_named(Basis('test', test['num_images'], test['num_patients']))}: macro AUROC "
            f"{_score(test['macro_auroc'])}{_interval_in_words(test['macro_auroc_ci'], how)}, "
            f"macro AUPRC {_score(test['macro_auprc'])}"
        )
    table = _table_of_validation(validation) if test is None else _table_of_test(test)
    withheld = [
        f"- {name}: {'; '.join(map(_reason_in_words, reasons))}"
        for name, reasons in (validation["withheld"] or {}).items()
    ]
    return [
        *lines,
        *([""] if table else []),
        *table,
        *(_care_in_words(test) if test is not None else []),
        *(["", "Withheld from validation:", ""] if withheld else []),
        *withheld,
    ]


def _table_of_validation(validation: Mapping[str, Any]) -> list[str]:
    if not validation["findings"]:
        return []
    ends, how, why = validation["auroc_ci"], validation["interval"], validation["why_undefined"]
    scores = {name: _score(auroc, why.get(name)) for name, auroc in validation["findings"].items()}
    if how is None:
        rows = [f"| {name} | {told} |" for name, told in scores.items()]
        return ["| finding | validation AUROC |", "|---|---:|", *rows]
    rows = [f"| {name} | {told} | {_ends(ends[name])} |" for name, told in scores.items()]
    return [f"| finding | validation AUROC | 95 % interval, {how} |", "|---|---:|---:|", *rows]


def _table_of_test(test: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {name} | {_score(row['auroc'], test['why_undefined'].get(name))} | {_ends(row['auroc_ci'])} "
        f"| {'–' if row['auprc'] is None else _score(row['auprc'])} | {row['num_positive']} |"
        for name, row in test["findings"].items()
    ]
    head = "| finding | test AUROC | 95 % interval | test AUPRC | positive images |"
    return [head, "|---|---:|---:|---:|---:|", *rows]


def _care_in_words(test: Mapping[str, Any]) -> list[str]:
    """Which intervals are not to be trusted, below the table."""
    made = test["interval"] or {"undefined_resamples": {}, "num_resamples": 0}
    often = often_undefined(made["undefined_resamples"], made["num_resamples"])
    if not often:
        return []
    named = ", ".join(f"{name} ({share(part)} of them)" for name, part in often.items())
    return [
        "",
        f"Read these intervals with care: so few patients have, or have not, the finding that resamples often lack one "
        f"side. {named}.",
    ]


def _reason_in_words(reason: str) -> str:
    """Why something is withheld; what a hospital may have written of it is set as code, in which nothing is markup."""
    if not reason.startswith(NO_SUMS):
        return reason
    words = " ".join(reason.removeprefix(NO_SUMS).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", words)), default=0))
    return f"{NO_SUMS}{fence} {words} {fence}" if "`" in words else f"{NO_SUMS}{fence}{words}{fence}"


def _interval_in_words(ends: list[float] | None, how: str | None) -> str:
    return "" if ends is None else f", 95 % interval {_ends(ends)}, {how}"


def _ends(ends: list[float] | None) -> str:
    return "–" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _named(basis: Basis) -> str:
    return str(basis).capitalize() + (f" (fewer than {SMALL_NUM_IMAGES}: a small number)" if basis.is_small else "")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _score(value: float | None, why_undefined: str | None = None) -> str:
    if value is not None:
        return f"{value:.3f}"
    return "undefined" if why_undefined is None else f"undefined: {why_undefined}"
