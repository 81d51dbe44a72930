"""The released model's card: what it is, what it was trained on in counts, how it scores, what it is not for.

It holds what the run knows and nothing else: counts by hospital, never an image or a patient.
"""

from collections.abc import Mapping
from typing import Any

from aecnn.config import FederationConfig, Plan
from aecnn.contract import RELEASED_MODEL, code_fingerprint
from aecnn.evaluation.metrics import Metrics
from aecnn.evaluation.report.basis import SMALL_NUM_IMAGES, Basis, validation_basis, validation_of
from aecnn.evaluation.report.history import history_of
from aecnn.findings import FINDINGS
from server.members import Member
from server.run_folder import RunFolder, now_iso
from server.settings import RunSettings
from server.store import Candidate

CARD_JSON, CARD_MARKDOWN = "model_card.json", "model_card.md"
LIMITS = (
    "For research. Not for clinical use: it is no medical device, and no one has examined it as one.",
    "Trained and scored on frontal chest radiographs of the hospitals named here; elsewhere it may do worse.",
    "Findings may have been labelled from reports by software, and such labels are wrong at times.",
    "AUROC says how well images are ordered; the probabilities are not calibrated.",
)


def write_model_card(
    folder: RunFolder,
    settings: RunSettings,
    members: Mapping[str, Member],
    released: Candidate,
    test: Metrics | None,
) -> None:
    """Writes ``model_card.json`` and the same in words, ``model_card.md``."""
    validation = _validation(folder, released)
    card = _card(settings, members, released, validation=validation, test=test)
    folder.write_json(CARD_JSON, card)
    folder.write_text(CARD_MARKDOWN, _in_words(card, settings.plan, settings.federation))


def _validation(folder: RunFolder, released: Candidate) -> dict[str, Any]:
    """The released model's validation as the history tells it, with what it stands on; undefined or unknown is None."""
    history = history_of(folder.history_file.read_text(encoding="utf-8"), [])
    event = validation_of(history, round_number=released.round_number)
    basis = None if event is None else validation_basis(history, event)
    return {
        "macro_auroc": released.validation_macro_auroc,
        "macro_auroc_error_bound": None if event is None else event.macro_auroc_error_bound,
        "num_images": None if basis is None else basis.num_images,
        "num_patients": None if basis is None else basis.num_patients,
        "num_hospitals": None if basis is None else basis.num_hospitals,
        "findings": {} if event is None else event.findings,
    }


def _card(
    settings: RunSettings,
    members: Mapping[str, Member],
    released: Candidate,
    *,
    validation: dict[str, Any],
    test: Metrics | None,
) -> dict[str, Any]:
    hospitals = {
        name: {
            "num_train_images": member.counts.num_train_images,
            "num_train_patients": member.counts.num_train_patients,
            "num_validation_images": member.counts.num_validation_images,
            "num_validation_patients": member.counts.num_validation_patients,
            "left": member.left,
        }
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


def _in_words(card: dict[str, Any], plan: Plan, federation: FederationConfig) -> str:
    return "\n".join(
        [
            f"# {card['run']}: joint AE-CNN",
            "",
            f"The model after round {card['released_round']} of {federation.num_rounds}, {_how_chosen(federation)}. "
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


def _how_chosen(federation: FederationConfig) -> str:
    if federation.released_round == "last":
        return "the last"
    return "the best by the hospitals' pooled validation AUROC"


def _table_of_hospitals(hospitals: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [
        f"| {name}{' (left)' if counts['left'] else ''} | {counts['num_train_images']} | "
        f"{counts['num_train_patients']} | {counts['num_validation_images']} | {counts['num_validation_patients']} |"
        for name, counts in hospitals.items()
    ]
    head = "| hospital | training images | training patients | validation images | validation patients |"
    return [head, "|---|---:|---:|---:|---:|", *rows]


def _figures(figures: Mapping[str, Any]) -> list[str]:
    validation, test = figures["validation"], figures["test"]
    basis = Basis("validation", *(validation[f"num_{noun}"] for noun in ("images", "patients", "hospitals")))
    bound = validation["macro_auroc_error_bound"]
    binned = "" if bound is None else f" (binning can have moved it by up to {_score(bound)})"
    lines = [f"- {_named(basis)}, pooled: macro AUROC {_score(validation['macro_auroc'])}{binned}"]
    if test is None:
        lines.append("- No test figures: the centre has no test set of its own")
        rows = [f"| {name} | {_score(auroc)} |" for name, auroc in validation["findings"].items()]
        return [*lines, "", "| finding | validation AUROC |", "|---|---:|", *rows] if rows else lines
    lines.append(
        f"- {_named(Basis('test', test['num_images'], test['num_patients']))}: macro AUROC "
        f"{_score(test['macro_auroc'])}, macro AUPRC {_score(test['macro_auprc'])}"
    )
    rows = [
        f"| {name} | {_score(row['auroc'])} | {_score(row['auprc'])} | {row['num_positive']} |"
        for name, row in test["findings"].items()
    ]
    return [*lines, "", "| finding | test AUROC | test AUPRC | positive images |", "|---|---:|---:|---:|", *rows]


def _named(basis: Basis) -> str:
    return str(basis).capitalize() + (f" (fewer than {SMALL_NUM_IMAGES}: a small number)" if basis.is_small else "")


def _score(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
