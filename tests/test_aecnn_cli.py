"""The command lines as a user meets them: outputs, exit codes and refusals."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
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
    document = json.loads(done.stdout)
    assert document["status"] == "fail"
    assert "Mass" in " ".join(document["faults"])
    told = _run("aecnn", "check", tmp_path, "--labels-only", code=1).stdout
    assert "fail  Table: 2 faults" in told
    assert "row 3: no patient is given" in told


@pytest.mark.slow
def test_check_opens_every_image_by_several_processes_and_writes_a_page(phantom_64px, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(phantom_64px, root)
    broken = sorted((root / "images").glob("*.png"))[5]
    broken.write_bytes(broken.read_bytes()[:-30])
    page = tmp_path / "check.html"
    done = _run("aecnn", "check", root, "--report", page, "--workers", 2, "--json", code=1)
    document = json.loads(done.stdout)
    assert [check["check"] for check in document["checks"] if check["status"] == "fail"] == ["readable"]
    assert broken.name in document["faults"][0]
    assert broken.name in page.read_text()


def test_check_refuses_a_place_for_its_page_before_the_work(phantom_64px, tmp_path):
    table = next(phantom_64px.glob("Data_Entry*.csv"))
    before = table.read_bytes()
    refused = _run("aecnn", "check", phantom_64px, "--report", table, code=2)
    assert "does not end in .html" in refused.stderr
    assert refused.stdout == ""
    assert table.read_bytes() == before
    assert "is no folder" in _run("aecnn", "check", phantom_64px, "--report", tmp_path / "no" / "r.html", code=2).stderr


def test_check_of_a_folder_without_a_table_cannot_be_carried_out(tmp_path):
    done = _run("aecnn", "check", tmp_path, "--labels-only", "--json", code=2)
    assert "no table in" in json.loads(done.stdout)["faults"][0]


@contextmanager
def _interruptible() -> Iterator[None]:
    """Children begun meanwhile heed Ctrl-C, also where a shell has the tests run in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_an_interrupted_cache_says_that_it_goes_on(phantom_64px, tmp_path):
    site, cache = tmp_path / "site.yaml", tmp_path / "cache"
    site.write_text(json.dumps({"data": {"root": str(phantom_64px), "cache_folder": str(cache)}}))
    command = [Path(sys.executable).with_name("aecnn"), "cache", site, "--size-px", "4096", "--workers", "1"]
    with _interruptible():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        while not any(cache.glob("4096px/.partial-*.npy")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=60)[1]
    assert (process.returncode, told.strip()[:39]) == (130, "interrupted: what was finished is kept,")


def test_check_reads_the_mapping_of_a_site_file(tmp_path):
    (tmp_path / "export.csv").write_text("File,MRN,PTX\na.png,1,1\nb.png,2,0\n")
    table = {"file": "export.csv", "image_column": "File", "patient_column": "MRN"}
    data = {"root": str(tmp_path), "table": {**table, "finding_columns": {"Pneumothorax": "PTX"}}}
    site = tmp_path / "site.yaml"
    site.write_text(json.dumps({"name": "st-mary", "validation_key": "a-long-secret", "data": data}))
    document = json.loads(_run("aecnn", "check", site, "--labels-only", "--json").stdout)
    assert document["findings"]["Pneumothorax"] == 1
    assert document["labels"]["findings"]["all"]["Mass"]["not_labelled"]["num_images"] == 2
    site.write_text(json.dumps({"data": {**data, "tabel": {}}}))
    assert "did you mean 'table'" in _run("aecnn", "check", site, "--labels-only", code=2).stderr
    site.write_text(json.dumps({"name": "x"}))
    assert "no section `data`" in _run("aecnn", "check", site, "--labels-only", code=2).stderr


@pytest.mark.slow
def test_cache_is_made_updated_and_verified(phantom_64px, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(phantom_64px, root)
    command = ("aecnn", "cache", root, "--size-px", 64)
    made = json.loads(_run(*command, "--workers", 2, "--json").stdout)
    num_images = len(read_manifest(phantom_64px))
    assert (made["num_images"], made["num_decoded"]) == (num_images, num_images)
    assert "0 decoded" in _run(*command).stdout
    assert "true to the files" in _run(*command, "--verify").stdout
    shard = next((root / "aecnn-cache" / "64px").glob("*.npy"))
    with shard.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    assert len(json.loads(_run(*command, "--verify", "--json", code=1).stdout)["faults"]) == 1


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
    write_targets(tmp_path / "t.csv", images, patients, manifest.targets, described=manifest.table)
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
        (["check", "/absent", "--labels-only", "--json"], "/absent"),
        (["check", "absent.yaml", "--labels-only"], "absent.yaml"),
        (["cache", "/absent"], "/absent"),
        (["evaluate", "--checkpoint", "x.safetensors"], "--checkpoint needs --data"),
    ],
)
def test_bad_input_is_told_in_a_sentence_without_a_traceback(arguments, told):
    done = _run("aecnn", *arguments, code=2)
    assert told in done.stderr
    assert done.stdout == ""


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
