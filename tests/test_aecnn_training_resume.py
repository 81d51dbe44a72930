"""A local training that is cut short goes on to the bits it would have had."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors import safe_open

from aecnn.config import DatasetConfig, ImagesConfig, ModelConfig, Plan, TrainingConfig
from aecnn.data.manifest import read_manifest
from aecnn.data.source import load_images
from aecnn.model.joint import build_model
from aecnn.model.weights import weights_of
from aecnn.training.loop import train_locally
from aecnn.training.resume import LocalCheckpoint
from conftest import PROJECT
from federation_in_process import same_weights

CPU = torch.device("cpu")


class PowerCutError(Exception):
    """What ends a training in these tests."""


@pytest.fixture(scope="module")
def data(phantom_64px):
    return load_images(read_manifest(phantom_64px), DatasetConfig(root=phantom_64px), size_px=64)


def _plan(backbone="resnet18", normalisation="batch", **training):
    return Plan(
        images=ImagesConfig(size_px=64, rotation_deg=5.0),
        model=ModelConfig(backbone=backbone, normalisation=normalisation),
        training=TrainingConfig(
            **({"batch_size": 4, "local_steps": 4, "learning_rate": 1e-3, "num_threads": 1} | training)
        ),
    )


def _train(data, plan, checkpoint=None, *, cut_after=None, seed=1, rows=None, has_dropout=False):
    """Gives the weights and the report; with `cut_after`, ends in the middle like a crash after that step."""
    model = build_model(plan.model, seed=0, input_size_px=64)
    if has_dropout:  # as Inception-v3 has before its last layer; that network takes minutes here
        model.classifier.fc.register_forward_pre_hook(
            lambda layer, inputs: torch.dropout(inputs[0], 0.5, layer.training)
        )

    def on_step(done, total):
        if done == cut_after:
            raise PowerCutError

    rows = np.arange(11) if rows is None else rows
    report = train_locally(model, data, rows, plan, seed=seed, device=CPU, checkpoint=checkpoint, on_step=on_step)
    return weights_of(model), dataclasses.replace(report, seconds=0.0)


@pytest.mark.parametrize(
    "plan",
    [
        _plan(optimizer="adam"),
        _plan(optimizer="sgd", learning_rate=1e-4, channels_last=True),
        _plan(normalisation="group", batch_size=6, local_steps=None, local_epochs=2),
    ],
    ids=["adam", "sgd-channels-last", "group-epochs"],
)
def test_a_training_cut_short_anywhere_ends_with_the_same_bits_and_sums(data, tmp_path, plan):
    whole = _train(data, plan)
    for cut_after in (1, 3):  # 3: the second pass has begun
        checkpoint = LocalCheckpoint(tmp_path / f"{cut_after}.safetensors", key="r1", interval_s=0.0)
        with pytest.raises(PowerCutError):
            _train(data, plan, checkpoint, cut_after=cut_after)
        torch.manual_seed(77)  # whatever another process has drawn
        weights, report = _train(data, plan, checkpoint)
        assert same_weights(whole[0], weights)
        assert report == whole[1]


def test_dropout_goes_on_with_the_draws_it_would_have_had(data, tmp_path):
    checkpoint = LocalCheckpoint(tmp_path / "c.safetensors", key="r1", interval_s=0.0)
    with pytest.raises(PowerCutError):
        _train(data, _plan(), checkpoint, cut_after=2, has_dropout=True)
    whole, without = _train(data, _plan(), has_dropout=True), _train(data, _plan())
    assert same_weights(_train(data, _plan(), checkpoint, has_dropout=True)[0], whole[0])
    assert not same_weights(without[0], whole[0])


def test_a_training_that_is_cut_short_many_times_ends_with_the_same_bits(data, tmp_path):
    plan, checkpoint = _plan(), LocalCheckpoint(tmp_path / "c.safetensors", key="r1", interval_s=0.0)
    for cut_after in range(1, 4):
        with pytest.raises(PowerCutError):
            _train(data, plan, checkpoint, cut_after=cut_after)
    assert same_weights(_train(data, plan, checkpoint)[0], _train(data, plan)[0])


def test_a_checkpoint_holds_arrays_and_json_and_is_the_owners_alone(data, tmp_path):
    checkpoint = LocalCheckpoint(tmp_path / "c.safetensors", key="r1", interval_s=0.0)
    _train(data, _plan(), checkpoint)
    with safe_open(checkpoint.path, framework="numpy") as file:
        header = json.loads(file.metadata()["training"])
        assert {name.split("/")[0] for name in file.keys()} == {"model", "optimizer", "random", "sums"}  # noqa: SIM118
    assert (header["of"][0], header["steps_done"]) == ("r1", 4)
    assert os.stat(checkpoint.path).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("other", ["key", "seed", "rows", "plan"])
def test_a_checkpoint_of_another_training_is_removed_unused(data, tmp_path, other):
    short = {"optimizer": "sgd", "learning_rate": 1e-4, "local_steps": 2}
    checkpoint = LocalCheckpoint(tmp_path / "c.safetensors", key="r1", interval_s=0.0)
    with pytest.raises(PowerCutError):
        _train(data, _plan(**short), checkpoint, cut_after=1)
    changed = {"seed": {"seed": 2}, "rows": {"rows": np.arange(1, 12)}}.get(other, {})
    plan = _plan(**short | {"learning_rate": 2e-4}) if other == "plan" else _plan(**short)
    anew = LocalCheckpoint(checkpoint.path, key="r2" if other == "key" else "r1")
    weights, _ = _train(data, plan, anew, **changed)
    assert same_weights(weights, _train(data, plan, **changed)[0])
    assert not checkpoint.path.exists()


def test_a_broken_checkpoint_costs_a_fresh_start_and_nothing_else(data, tmp_path):
    checkpoint = LocalCheckpoint(tmp_path / "c.safetensors", key="r1")
    checkpoint.path.write_bytes(b"\x10\0\0\0\0\0\0\0 half a header")
    plan = _plan(local_steps=1)
    assert same_weights(_train(data, plan, checkpoint)[0], _train(data, plan)[0])


def test_saving_goes_by_the_clock(data, tmp_path):
    checkpoint = LocalCheckpoint(tmp_path / "c.safetensors", key="r1", interval_s=3600.0)
    _train(data, _plan(local_steps=2), checkpoint)
    assert not checkpoint.path.exists()


_CHILD = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    import numpy as np, torch
    from safetensors.numpy import save_file
    from aecnn.config import DatasetConfig, Plan
    from aecnn.data.manifest import read_manifest
    from aecnn.data.source import load_images
    from aecnn.model.joint import build_model
    from aecnn.model.weights import weights_of
    from aecnn.training.loop import train_locally
    from aecnn.training.resume import LocalCheckpoint

    root, folder, plan = Path(sys.argv[1]), Path(sys.argv[2]), Plan.model_validate_json(sys.argv[3])
    torch.set_num_threads(1)
    data = load_images(read_manifest(root), DatasetConfig(root=root), size_px=64)
    model = build_model(plan.model, seed=0, input_size_px=64)
    train_locally(
        model, data, np.arange(11), plan, seed=1, device=torch.device("cpu"),
        checkpoint=LocalCheckpoint(folder / "c.safetensors", key="r1", interval_s=0.0),
        on_step=lambda done, total: print(done, flush=True),
    )
    save_file(weights_of(model), folder / "done.safetensors")
    """
)


@pytest.mark.slow
def test_a_process_killed_at_random_moments_ends_with_the_same_bits(data, phantom_64px, tmp_path):
    plan, moments = _plan(local_steps=8, learning_rate=1e-4, optimizer="sgd"), random.Random(4)
    steps_seen, kills = [], 0
    while kills < 3:
        command = [sys.executable, "-c", _CHILD, str(phantom_64px), str(tmp_path), plan.model_dump_json()]
        with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as child:
            steps_seen.append(int(child.stdout.readline()))
            try:
                child.wait(timeout=moments.uniform(0.02, 0.6))
            except subprocess.TimeoutExpired:
                kills += 1
                os.kill(child.pid, signal.SIGKILL)
            else:
                break
    if not (tmp_path / "done.safetensors").exists():
        subprocess.run(command, cwd=PROJECT, stdout=subprocess.DEVNULL, check=True)
    assert steps_seen == sorted(steps_seen)
    assert steps_seen[-1] > 1  # it did go on
    with safe_open(tmp_path / "done.safetensors", framework="numpy") as file:
        resumed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole, _ = _train(data, plan)
    finally:
        torch.set_num_threads(threads)
    assert same_weights({name: resumed[name] for name in whole}, whole)


def test_a_disk_that_takes_no_checkpoint_does_not_end_the_training(data, tmp_path, caplog):
    plan = _plan(local_steps=1)
    checkpoint = LocalCheckpoint(tmp_path / "no such folder" / "c.safetensors", key="r1", interval_s=0.0)
    assert same_weights(_train(data, plan, checkpoint)[0], _train(data, plan)[0])
    assert "cannot be kept" in caplog.text
