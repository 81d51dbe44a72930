"""The command lines as a user meets them: outputs, exit codes and refusals."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import aecnn.cli
import simulations.cli
from aecnn.config import ImagesConfig, ModelConfig
from aecnn.data.manifest import read_manifest
from aecnn.evaluation.predictions import write_predictions, write_targets
from aecnn.findings import FINDINGS
from aecnn.model.checkpoint import CheckpointMetadata, save_checkpoint
from aecnn.model.joint import build_model
from aecnn.model.weights import weights_of
from federation_in_process import SMALL


@dataclass(frozen=True)
class Done:
    """What a command left: exit code and both outputs."""

    code: int
    stdout: str
    stderr: str


def _run(*arguments, code=0):
    """Runs a console script's main function in this process, which has PyTorch imported already."""
    main = {"aecnn": aecnn.cli.main, "aecnn-simulate": simulations.cli.main}[arguments[0]]
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(stdout), redirect_stderr(stderr), patch.object(sys, "argv", [str(a) for a in arguments]):
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
    assert status == code, stdout.getvalue() + stderr.getvalue()
    return Done(status, stdout.getvalue(), stderr.getvalue())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    config, images = ModelConfig(backbone="resnet18"), ImagesConfig(size_px=64)
    weights = weights_of(build_model(config, seed=0, input_size_px=64))
    save_checkpoint(path, weights, CheckpointMetadata(model=config, images=images, round=1, run="test"))
    return path


@pytest.mark.parametrize("command", ["aecnn", "aecnn-simulate"])
def test_the_installed_scripts_teach_and_fail_without_a_traceback(command):
    script = Path(sys.executable).with_name(command)
    assert "Usage" in subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    faulty = {"aecnn": ["describe"], "aecnn-simulate": ["run", "absent.yaml"]}[command]
    done = subprocess.run([script, *faulty], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error:")
    assert "Traceback" not in done.stderr


def test_check_counts_the_full_real_table(real_data):
    done = _run("aecnn", "check", real_data / "nih_metadata", "--labels-only", "--json")
    report = json.loads(done.stdout)
    assert (report["num_images"], report["num_patients"]) == (112_120, 30_805)
    assert report["splits"]["train_val"]["num_images"] == 86_524
    assert report["splits"]["test"]["num_images"] == 25_596
    assert report["findings"]["Hernia"] == 227
    assert report["faults"] == []


def test_check_of_a_faulty_table_exits_with_one_and_lists_the_faults(tmp_path):
    (tmp_path / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels,Patient ID\na.png,Mas,1\nb.png,Mass,\n")
    done = _run("aecnn", "check", tmp_path, "--labels-only", "--json", code=1)
    assert "Mass" in " ".join(json.loads(done.stdout)["faults"])
    assert _run("aecnn", "check", tmp_path, "--labels-only", code=1).stdout.count("fault") >= 2


def test_phantom_writes_a_dataset_that_check_finds_in_order(tmp_path):
    out = tmp_path / "phantom"
    made = json.loads(_run("aecnn", "phantom", "--out", out, "--patients", 6, "--image-size-px", 64, "--json").stdout)
    checked = json.loads(_run("aecnn", "check", out, "--labels-only", "--json").stdout)
    assert (made["num_images"], made["num_patients"]) == (checked["num_images"], checked["num_patients"])
    assert checked["faults"] == []
    _run("aecnn", "phantom", "--out", out, "--patients", 6, "--image-size-px", 64)  # the same again: reused
    refused = _run("aecnn", "phantom", "--out", out, "--patients", 7, "--image-size-px", 64, code=2)
    assert "num_patients" in refused.stderr


def test_evaluate_scores_a_checkpoint_on_a_split_and_keeps_standard_output_for_json(checkpoint, phantom_64px):
    done = _run("aecnn", "evaluate", "--checkpoint", checkpoint, "--data", phantom_64px, "--json")
    document = json.loads(done.stdout)
    assert set(document["findings"]) == set(FINDINGS)
    assert document["num_images"] == len((phantom_64px / "test_list.txt").read_text().split())
    assert 10 < document["reconstruction"]["psnr_db"] < 50
    text = _run("aecnn", "evaluate", "--checkpoint", checkpoint, "--data", phantom_64px).stdout
    assert "macro AUROC" in text


def test_evaluate_scores_predictions_against_data_or_a_table_of_targets_alike(phantom_64px, tmp_path):
    manifest = read_manifest(phantom_64px).of_split("test")
    scores = np.random.default_rng(0).random(manifest.targets.shape)
    images, patients = manifest.table["image"].tolist(), manifest.table["patient"].tolist()
    write_predictions(tmp_path / "p.csv", images, scores)
    write_targets(tmp_path / "t.csv", images, patients, manifest.targets)
    by_data = _run("aecnn", "evaluate", "--predictions", tmp_path / "p.csv", "--data", phantom_64px, "--json")
    by_table = _run("aecnn", "evaluate", "--predictions", tmp_path / "p.csv", "--targets", tmp_path / "t.csv", "--json")
    document = json.loads(by_data.stdout)
    assert document == json.loads(by_table.stdout)
    effusion = roc_auc_score(manifest.targets[:, 2], scores[:, 2])
    assert document["findings"]["Effusion"]["auroc"] == pytest.approx(effusion, abs=1e-6)
    assert document["num_patients"] == len(set(patients))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evaluate"], "give either --checkpoint or --predictions"),
        (["evaluate", "--predictions", "p.csv"], "either --data or --targets"),
        (["evaluate", "--checkpoint", "absent.safetensors", "--data", "."], "absent.safetensors"),
        (["describe"], "densenet121"),
        (["describe", "--backbone", "densenet12"], "densenet12"),
        (["describe", "--backbone", "densenet121", "--input-size-px", "64"], "128"),
        (["check", "/absent", "--labels-only", "--json"], None),
    ],
)
def test_bad_input_is_told_in_a_sentence_without_a_traceback(arguments, told):
    done = _run("aecnn", *arguments, code=1 if told is None else 2)
    assert (told or "/absent") in done.stderr + done.stdout


def test_a_checkpoint_of_another_format_is_refused(tmp_path, phantom_64px):
    (tmp_path / "model.pth").write_bytes(b"\x80\x02}q\x00.")
    done = _run("aecnn", "evaluate", "--checkpoint", tmp_path / "model.pth", "--data", phantom_64px, code=2)
    assert "safetensors" in done.stderr


def test_describe_gives_the_published_counts_and_reads_checkpoints(checkpoint):
    document = json.loads(_run("aecnn", "describe", "--backbone", "densenet121", "--json").stdout)
    assert document["num_parameters"]["total"] == 6_969_231
    assert document["latent_shape"] == [1, 224, 224]
    document = json.loads(_run("aecnn", "describe", "--checkpoint", checkpoint, "--json").stdout)
    assert document["num_parameters"]["total"] == 11_184_719
    assert document["latent_shape"] == [1, 16, 16]
    assert "multiply-accumulates" in _run("aecnn", "describe", "--checkpoint", checkpoint).stdout


@pytest.mark.slow
def test_simulate_runs_a_configuration_to_a_report_and_says_so_in_json(phantom_64px, tmp_path):
    document = {**SMALL, "data": {"root": str(phantom_64px)}, "train_alone": True}
    (tmp_path / "run.yaml").write_text(json.dumps(document))  # JSON is YAML
    out = tmp_path / "out"
    command = ("aecnn-simulate", "run", tmp_path / "run.yaml", "--out", out, "--set", "training.local_steps=1")
    done = _run(*command, "--json")
    summary = json.loads(done.stdout)
    assert summary["num_hospitals"] == 3
    assert summary["macro_auroc"] == json.loads((out / "metrics.json").read_text())["macro_auroc"]
    assert summary["alone_mean_macro_auroc"] == json.loads((out / "alone.json").read_text())["mean_macro_auroc"]
    assert "round 2/2" in done.stderr
    assert "local_steps: 1" in (out / "config.yaml").read_text()
    scored = _run("aecnn", "evaluate", "--checkpoint", out / "global.safetensors", "--data", phantom_64px, "--json")
    assert json.loads(scored.stdout)["macro_auroc"] == pytest.approx(summary["macro_auroc"], abs=1e-9)
    again = _run(*command, code=1)
    assert "holds something already" in again.stderr


def test_simulate_refuses_an_unknown_key_before_anything_is_made(tmp_path):
    done = _run(
        "aecnn-simulate", "run", "configs/demo.yaml", "--set", "model.backbon=x", "--out", tmp_path / "o", code=2
    )
    assert "did you mean 'backbone'" in done.stderr
    assert not (tmp_path / "o").exists()
