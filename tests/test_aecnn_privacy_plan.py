"""`aecnn plan-privacy` as a user meets it: published figures, tables, plot, warnings, refusals."""

import io
import json
import math
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

import pytest
from PIL import Image

import aecnn.cli
from aecnn.contract import exchange_schema
from aecnn.enrolment import EnrolmentRequest
from conftest import PROJECT

PLAN = ("--patients", 1000, "--sample-rate", 0.05, "--steps", 400)
EVALUATION = ("--evaluation-epsilon", 4, "--validation-patients")


def _run(*arguments, code=0):
    """Gives what the command wrote to standard output and to standard error."""
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    words = ["aecnn", "plan-privacy", *(str(argument) for argument in arguments)]
    with redirect_stdout(stdout), redirect_stderr(stderr), patch.object(sys, "argv", words):
        try:
            aecnn.cli.main()
        except SystemExit as end:
            status = end.code or 0
    assert status == code, stdout.getvalue() + stderr.getvalue()
    return stdout.getvalue(), stderr.getvalue()


def _answer(*arguments):
    return json.loads(_run(*arguments, "--json")[0])


@pytest.fixture(scope="module")
def target():
    return _answer(*PLAN, "--epsilon", 8, "--rounds", 10, *EVALUATION, 3000, "--prevalence", 0.1)


def test_a_target_is_answered_with_the_noise_of_the_whole_plan(target):
    assert target["noise_multiplier"] == pytest.approx(0.917, abs=0.001)
    assert target["noise_multiplier_by_rdp"] == pytest.approx(0.963, abs=0.001)
    assert target["epsilon"]["prv"] == pytest.approx(8.0, abs=0.002)
    assert target["adjacency"] == "one patient, with all their images, is added or removed"
    assert (target["delta"], target["expected_batch"], target["steps_of_a_patient"]) == (1e-5, 50.0, 20.0)
    assert target["empty_steps"] == pytest.approx(math.exp(-51.3), rel=0.01)
    assert target["warnings"] == []


def test_epsilon_after_each_round_is_the_published_sequence(target):
    rounds = target["after_rounds"]
    assert [row["round"] for row in rounds] == list(range(1, 11))
    assert [row["steps"] for row in rounds] == list(range(40, 401, 40))
    expected = (3.02, 3.87, 4.56, 5.17, 5.71, 6.22, 6.70, 7.15, 7.58, 7.99)
    assert [row["epsilon"]["prv"] for row in rounds] == pytest.approx(expected, abs=0.015)
    assert all(row["epsilon"]["prv"] < row["epsilon"]["rdp"] for row in rounds)


def test_more_noise_and_more_patients_lower_epsilon_and_what_is_asked_stands_among_them(target):
    by_noise = [row["epsilon"]["prv"] for row in target["against_noise"]]
    assert by_noise == sorted(by_noise, reverse=True)
    assert target["epsilon"]["prv"] in by_noise
    by_patients = {row["patients"]: row for row in target["against_patients"]}
    assert list(by_patients) == [500, 1000, 2000, 4000]
    assert by_patients[2000]["sample_rate"] == 0.025
    assert by_patients[2000]["noise_multiplier"] < by_patients[1000]["noise_multiplier"] == target["noise_multiplier"]
    assert by_patients[500]["epsilon"]["prv"] > 8.0 > by_patients[2000]["epsilon"]["prv"]


def test_noised_histograms_are_worth_what_the_number_of_positives_makes_of_them(target):
    evaluation = target["evaluation"]
    assert (evaluation["evaluations"], evaluation["positives"]) == (3, 300.0)  # rounds 5 and 10, and the last model
    assert 0.03 < evaluation["auroc_error"] < 0.08
    few = _answer(*PLAN, "--noise-multiplier", 1, "--rounds", 10, *EVALUATION, 300)["evaluation"]
    assert few["auroc_error"] is None
    assert few["positives"] == pytest.approx(15.0)
    assert few["fewest_images"] > 15.0


def test_a_noise_is_answered_with_its_epsilon_by_both_accountants():
    answer = _answer("--patients", 11_212, "--sample-rate", 64 / 11_212, "--steps", 8750, "--noise-multiplier", 1,
                     "--delta", 1e-5)  # fmt: skip
    assert answer["epsilon"]["rdp"] == pytest.approx(3.30, abs=0.01)
    assert answer["epsilon"]["prv"] == pytest.approx(3.03, abs=0.015)
    assert answer["noise_multiplier_by_rdp"] is None
    assert answer["evaluation"] is None
    assert answer["against_patients"][0]["noise_multiplier"] is None


def test_noise_too_small_to_account_for_is_null_and_valid_json():
    answer = _answer("--patients", 100, "--sample-rate", 0.5, "--steps", 10, "--noise-multiplier", 0.01)
    assert answer["epsilon"] == {"prv": None, "rdp": None}


def test_the_screen_shows_rounds_trade_offs_and_the_plot(tmp_path):
    plot = tmp_path / "trade-off.png"
    arguments = (*PLAN, "--epsilon", 8, "--rounds", 40, *EVALUATION, 3000, "--prevalence", 0.1, "--plot", plot)
    stdout, stderr = _run(*arguments)
    assert "noise multiplier 0.916" in stdout
    assert "ε 8.00 at δ 1e-05" in stdout
    assert len([line for line in stdout.splitlines() if line[:2].strip().isdigit() and "   " in line]) >= 20
    assert "an AUROC is off by about ±0." in stdout
    assert f"plot: {plot}" in stdout
    assert "warning" not in stderr
    with Image.open(plot) as picture:
        assert picture.width > 1000
        assert len(picture.convert("L").getcolors()) > 10  # something is drawn


def test_a_delta_too_large_and_a_tiny_batch_are_warned_of():
    arguments = ("--patients", 100, "--sample-rate", 0.02, "--steps", 10, "--noise-multiplier", 2, "--delta", 0.02)
    first, second = _answer(*arguments)["warnings"]
    assert first.startswith("delta 0.02 is not below 1/patients (0.01)")
    assert second.startswith("the expected batch is 2 patients")
    assert "Raise the sample rate" in second
    stdout, stderr = _run(*arguments)
    assert stderr.count("warning") == 2
    assert "warning" not in stdout


def test_every_fault_of_a_question_is_told_at_once():
    faulty = ("--patients", 0, "--sample-rate", 1.5, "--steps", 15, "--rounds", 4, "--evaluation-epsilon", 1,
              "--delta", 1, "--plot", "absent/plot.gif")  # fmt: skip
    stdout, stderr = _run(*faulty, "--json", code=2)
    assert stdout == ""
    for sentence in (
        "--patients 0: give 1 or more",
        "--sample-rate 1.5: give a probability",
        "--delta 1: give a number between 0 and 1",
        "give exactly one of --epsilon and --noise-multiplier",
        "15 steps are not 4 equal rounds: give --steps 16",
        "--evaluation-epsilon and --validation-patients go together",
        "end its name with one of .png, .svg, .pdf",
        "its folder is not there",
    ):
        assert sentence in stderr


def test_an_epsilon_that_no_noise_gives_is_refused():
    _, stderr = _run(*PLAN, "--epsilon", 1e-9, code=2)
    assert "no noise gives ε 1e-09" in stderr


def test_help_teaches_and_comes_without_importing_pytorch():
    code = (
        "import sys, aecnn.cli; sys.argv = ['aecnn', 'plan-privacy', '--help']\n"
        "try:\n    aecnn.cli.main()\nfinally:\n    assert 'torch' not in sys.modules and 'opacus' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown = " ".join(done.stdout.split())
    for words in ("by a factor of exp(ε)", "rounds do not each get their own", "Exit codes"):
        assert words in shown


def test_the_documentation_says_of_every_field_of_every_message_what_becomes_of_it():
    text = (PROJECT / "docs" / "privacy.md").read_text(encoding="utf-8")
    table = text.split("## Every field of every message")[1].split("\n## ")[0]
    told = {word for line in table.splitlines() if line.startswith("|") for word in line.split("|")[2].split("`")[1::2]}
    fields = {field for records in exchange_schema().values() for keys in records.values() for field in keys}
    assert told == fields
    for field in set(EnrolmentRequest.model_fields) - {"format_version"}:
        assert f"`{field.replace('_', '-')}`" in table
