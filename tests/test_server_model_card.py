"""The model card: what its figures stand on, and how to read the weights beside it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from aecnn.cli import app
from aecnn.contract import HospitalCounts, told_names
from aecnn.evaluation.metrics import Metrics, Resampling, score
from aecnn.findings import FINDINGS
from aecnn.model.checkpoint import CheckpointMetadata, save_checkpoint
from aecnn.model.joint import build_model
from aecnn.model.weights import weights_of
from run_folders_of_tests import judged_event as made_up_judgement
from scripted_hospitals import PLAN, settings
from server.history import start_event
from server.judgement import NO_SUMS, Judgement, judged_event
from server.members import Member
from server.model_card import write_model_card
from server.run_folder import RunFolder
from server.store import Candidate
from server.wire import AnswerError

COUNTS = {"a": (18, 5), "b": (18, 4), "c": (3, 2)}  # validation images, patients


def card_of(
    path: Path, *, test: Metrics | None = None, judged: dict[str, Any] | None = None, factor: int = 1
) -> tuple[dict[str, Any], str]:
    """Gives the card of a run that releases round 2, for programs and in words."""
    folder = RunFolder.create(path)
    counts = {
        name: HospitalCounts(
            num_train_images=100,
            num_train_patients=40,
            num_validation_images=images * factor,
            num_validation_patients=patients * factor,
            num_skipped_images=0,
        )
        for name, (images, patients) in COUNTS.items()
    }
    folder.append_event(start_event("trial", "0" * 16, counts, refused={}))
    for number, auroc in ((1, 0.454), (2, 0.571), (3, 0.537)):
        folder.append_event(
            {
                "event": "validation",
                "round": number,
                "macro_auroc": auroc,
                "macro_auroc_error_bound": 0.034,
                "findings": dict.fromkeys(FINDINGS, auroc) | {"Fibrosis": None},
                "num_images": 39,
                "hospitals": {name: {"macro_auroc": auroc} for name in COUNTS},
            }
        )
    members = {name: Member(count) for name, count in counts.items()}
    write_model_card(folder, settings(), members, Candidate(2, 0.571), judged=judged, test=test, privacy={})
    return json.loads((path / "model_card.json").read_text()), (path / "model_card.md").read_text()


def test_the_validation_figure_says_on_how_many_images_patients_and_hospitals_it_stands(tmp_path: Path) -> None:
    card, words = card_of(tmp_path / "run")
    figures = card["figures"]["validation"]
    assert [figures[f"num_{noun}"] for noun in ("images", "patients", "hospitals")] == [39, 11, 3]
    assert figures["findings"]["Mass"] == figures["macro_auroc"] == 0.571
    assert "Validation, 39 images, 11 patients, 3 hospitals (fewer than 100: a small number), pooled" in words
    assert "macro AUROC 0.571 (binning can have moved it by up to 0.034)" in words
    assert "| Mass | 0.571 |" in words
    assert "| Fibrosis | undefined: no hospital told images both with it and without it |" in words


def test_a_finding_that_hospitals_withhold_is_not_called_unlabelled(tmp_path: Path) -> None:
    judged = made_up_judgement(2, hospitals=tuple(COUNTS))
    judged["findings"]["Fibrosis"] |= {"auroc": None, "auroc_ci": None, "num_positive": None, "num_negative": None}
    card, words = card_of(tmp_path / "run", judged=judged)
    assert "| Fibrosis | undefined: withheld by every hospital, or labelled at none | – |" in words
    assert list(card["figures"]["validation"]["why_undefined"]) == ["Fibrosis"]


@pytest.mark.parametrize(
    "name",
    [
        "[Urgent](http://evil.example)",
        "<script>alert(1)</script>",
        "`[Urgent](http://evil.example)`",
        "``` <b>x</b> `",
        "<http://evil.example>",
        "![seen](http://evil.example/x.png)\n\n# Approved",
        "x | y",
    ],
)
def test_what_a_hospital_writes_is_no_markup_in_the_card_that_others_read(tmp_path: Path, name: str) -> None:
    error = AnswerError(f"the answer holds what was not asked for: {told_names([name])}")
    event = judged_event(Judgement(2, {"a": None}), {}, members=["a"], unplaced={"a": str(error), "b": "not answered"})
    event["withheld"]["a"].append(f"{NO_SUMS}{name}")  # as it would be, had no one shortened it
    card, words = card_of(tmp_path / "run", judged=event)
    tokens = [part for token in MarkdownIt("commonmark").parse(words) for part in [token, *(token.children or [])]]
    assert not {"link_open", "image", "html_inline", "html_block"} & {token.type for token in tokens}
    assert "Approved" not in [token.content for token in tokens if token.type == "inline"]
    quoted = [token.content for token in tokens if token.type == "code_inline"]
    assert [text for text in quoted if " ".join(name.split()) == text]
    assert any(repr(name) in text for text in quoted)
    assert name in card["figures"]["validation"]["withheld"]["a"][-1]  # for programs as it came


def test_a_figure_of_many_images_is_not_called_one_of_few(tmp_path: Path) -> None:
    assert "a small number" not in card_of(tmp_path / "run", factor=10)[1]


def test_with_a_test_set_the_findings_are_of_the_test_set_and_its_size_is_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    targets = (rng.random((60, len(FINDINGS))) < 0.4).astype(np.float32)
    patients = [str(row // 2) for row in range(60)]
    test = score(rng.normal(targets, 1.0), targets, patients)
    _, words = card_of(tmp_path / "run", test=test)
    assert f"Test, 60 images, 30 patients (fewer than 100: a small number): macro AUROC {test.macro_auroc:.3f}" in words
    assert "| finding | test AUROC |" in words
    assert "| finding | validation AUROC |" not in words


def test_test_figures_say_why_one_is_missing_and_which_interval_to_read_with_care(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    targets = (rng.random((60, len(FINDINGS))) < 0.4).astype(np.float32)
    targets[:, FINDINGS.index("Hernia")] = 0.0
    targets[:, FINDINGS.index("Mass")] = np.nan
    test = score(rng.normal(np.nan_to_num(targets), 1.0), targets, [str(row // 2) for row in range(60)])
    made = Resampling(num_resamples=1000, seed=0, num_undefined={"Edema": 134, "Nodule": 10})
    _, words = card_of(tmp_path / "run", test=replace(test, resampling=made))
    assert "| Hernia | undefined: no positive image | – | – | 0 |" in words
    assert "| Mass | undefined: not labelled in any image | – | – | 0 |" in words
    assert "resamples often lack one side. Edema (13.4 % of them)." in words
    assert "often lack" not in card_of(tmp_path / "sure", test=test)[1]


def test_the_command_that_the_card_gives_reads_the_weights_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, words = card_of(tmp_path / "run")
    weights = weights_of(build_model(PLAN.model, seed=0, input_size_px=64))
    metadata = CheckpointMetadata(model=PLAN.model, images=PLAN.images, round=2, run="trial")
    save_checkpoint(tmp_path / "run" / "global.safetensors", weights, metadata)
    command = re.search(r"`aecnn (describe [^`]+)`", words)
    assert command is not None
    monkeypatch.chdir(tmp_path / "run")
    done = CliRunner().invoke(app, command.group(1).split())
    assert done.exit_code == 0
    assert "resnet18" in done.output
