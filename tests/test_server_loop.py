"""Rounds over a real ClientApp in process: determinism, admission, quorum, release."""

import json
import math
import re

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from aecnn import contract
from aecnn.errors import FederationError
from aecnn.model.checkpoint import load_checkpoint
from aecnn.model.weights import pack_weights, unpack_weights
from client.app import app as client_app
from federation_in_process import image_weighted_mean, same_weights, small_config
from server.app import run_and_release
from server.loop import better
from server.settings import RunSettings
from server.store import Candidate
from simulations.grid import InProcessGrid
from simulations.runner import prepare_run, run_prepared

pytestmark = pytest.mark.slow  # real training, a few seconds each


def _run(config, path):
    prepared = prepare_run(config, path)
    run_prepared(prepared, "inprocess")
    return load_checkpoint(path / "global.safetensors"), _history(path)


def _history(path):
    return [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]


@pytest.fixture
def tampered_run(monkeypatch):
    """Runs a federation in which one hospital's training answers are changed on their way to the centre.

    Gives the released checkpoint, the history, and every hospital's true update (weights, number of images) by name.
    """

    def run(config, path, name=None, change=None):
        updates = {}

        def tampered(message: Message, context) -> Message:
            reply = client_app(message, context)
            if reply.has_content() and contract.REPORT in reply.content:
                hospital = reply.content[contract.ORIGIN]["hospital"]
                updates[hospital] = (_weights_in(reply), reply.content[contract.REPORT]["num-images"])
                if hospital == name:
                    change(reply)
            return reply

        monkeypatch.setattr("simulations.runner.client_app", tampered)
        checkpoint, history = _run(config, path)
        return checkpoint, history, updates

    return run


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(phantom_64px, tmp_path):
    one, _ = _run(small_config(phantom_64px), tmp_path / "one")
    two, _ = _run(small_config(phantom_64px), tmp_path / "two")
    other, _ = _run(small_config(phantom_64px, seed=4), tmp_path / "other")
    assert same_weights(one.weights, two.weights)
    assert not same_weights(one.weights, other.weights)


def test_a_run_leaves_a_history_whose_sums_agree_and_a_model_that_loads(phantom_64px, tmp_path):
    checkpoint, history = _run(small_config(phantom_64px, federation={"released_round": "last"}), tmp_path / "run")
    kinds = [event["event"] for event in history]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    assert kinds.count("round") == 2
    assert [event["round"] for event in history if event["event"] == "validation"] == [0, 1, 2]
    start = history[0]["hospitals"]
    assert list(start) == ["hospital-1", "hospital-2", "hospital-3"]
    last = [event for event in history if event["event"] == "validation"][-1]
    assert last["num_images"] == sum(counts["num_validation_images"] for counts in start.values())
    pooled = sum(h["bce"] * h["num_images"] for h in last["hospitals"].values()) / last["num_images"]
    assert last["bce"] == pytest.approx(pooled)
    assert checkpoint.metadata.round == 2
    assert checkpoint.weights["classifier.bn1.num_batches_tracked"].dtype == np.int64
    assert int(checkpoint.weights["classifier.bn1.num_batches_tracked"]) == 4  # 2 rounds of 2 steps, not 6 × that
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["findings"]) == set(last["findings"])
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_one_round_is_the_average_of_what_the_hospitals_answered(phantom_64px, tmp_path, tampered_run):
    config = small_config(phantom_64px, federation={"num_rounds": 1, "released_round": "last"})
    released, _, updates = tampered_run(config, tmp_path / "run")
    assert len(updates) == 3
    assert same_weights(released.weights, image_weighted_mean([updates[name] for name in sorted(updates)]))


def test_the_best_round_by_validation_is_released_and_the_first_never(phantom_64px, tmp_path):
    config = small_config(phantom_64px, federation={"num_rounds": 3, "released_round": "best"})
    checkpoint, history = _run(config, tmp_path / "run")
    judged = {e["round"]: e["macro_auroc"] for e in history if e["event"] == "validation" and e["round"] > 0}
    assert judged[checkpoint.metadata.round] == max(judged.values())
    assert history[-1]["released_round"] == checkpoint.metadata.round


def test_a_fraction_of_the_hospitals_trains_and_all_of_them_judge(phantom_64px, tmp_path):
    config = small_config(phantom_64px, federation={"num_rounds": 3, "fraction": 0.67, "min_hospitals": 2})
    _, history = _run(config, tmp_path / "run")
    trained = [tuple(event["hospitals"]) for event in history if event["event"] == "round"]
    assert all(len(names) == 2 for names in trained)
    assert all(len(event["hospitals"]) == 3 for event in history if event["event"] == "validation")


def _weights_in(reply):
    return unpack_weights(reply.content[contract.WEIGHTS][contract.PACKED].numpy())


def _with_weights(change):
    """Gives a change of a reply that changes its weights, a dict of arrays by name."""

    def change_reply(reply):
        changed = change({name: array.copy() for name, array in _weights_in(reply).items()})
        reply.content[contract.WEIGHTS] = ArrayRecord({contract.PACKED: Array(pack_weights(changed))})

    return change_reply


@_with_weights
def _with_nan(weights):
    weights["encoder.0.weight"].flat[0] = math.nan
    return weights


@_with_weights
def _with_a_negative_variance(weights):
    weights["classifier.bn1.running_var"].flat[0] = -1.0
    return weights


def _claiming(num_images):
    def change(reply):
        report = dict(reply.content[contract.REPORT])
        reply.content[contract.REPORT] = MetricRecord({**report, "num-images": num_images})

    return change


@_with_weights
def _without_a_tensor(weights):
    return {name: array for name, array in weights.items() if name != "encoder.0.weight"}  # a small one


@_with_weights
def _of_another_shape(weights):
    return weights | {"encoder.0.weight": weights["encoder.0.weight"].reshape(-1)}


@_with_weights
def _far_away(weights):
    return weights | {"encoder.0.weight": weights["encoder.0.weight"] + 1e4}


def _of_noise(reply):
    size = reply.content[contract.WEIGHTS][contract.PACKED].numpy().size
    noise = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    reply.content[contract.WEIGHTS] = ArrayRecord({contract.PACKED: Array(noise)})


def _cut_off(reply):
    packed = reply.content[contract.WEIGHTS][contract.PACKED].numpy()
    reply.content[contract.WEIGHTS] = ArrayRecord({contract.PACKED: Array(packed[: packed.size // 2])})


def _lying_of_its_size(reply):
    """The array's own header claims a petabyte."""
    data = reply.content[contract.WEIGHTS][contract.PACKED].data
    header = data[: data.index(b"\n") + 1]
    lie = re.sub(rb"\(\d+,\)", b"(1000000000000000,)", header)
    lie = lie[:10] + lie[10:].rstrip().ljust(len(header) - 11) + b"\n"
    assert len(lie) == len(header)
    array = Array(dtype="uint8", shape=(10**15,), stype="numpy.ndarray", data=lie + data[len(header) :])
    reply.content[contract.WEIGHTS] = ArrayRecord({contract.PACKED: array})


def _as_another_hospital(reply):
    reply.content[contract.ORIGIN] = ConfigRecord({**reply.content[contract.ORIGIN], "hospital": "hospital-1"})


def _of_another_round(reply):
    reply.content[contract.ORIGIN] = ConfigRecord({**reply.content[contract.ORIGIN], "round": 7})


def _with_other_code(reply):
    reply.content[contract.ORIGIN] = ConfigRecord({**reply.content[contract.ORIGIN], "fingerprint": "0" * 64})


def _with_more_than_asked(reply):
    reply.content["patients"] = ConfigRecord({"names": "Mary"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_with_nan, "NaN or infinity"),
        (_claiming(10**9), "claims 1000000000 training images"),
        (_claiming(-150), "num-images"),
        (_claiming(0), "num-images"),
        (_without_a_tensor, "not the model's"),
        (_of_another_shape, "expected float32"),
        (_far_away, "times the round's median"),
        (_of_noise, "no safetensors file"),
        (_cut_off, "and the global model's"),
        (_with_a_negative_variance, "negative"),
        (_lying_of_its_size, "must be uint8"),
        (_as_another_hospital, "now calls itself 'hospital-1'"),
        (_of_another_round, "answers round 7"),
        (_with_other_code, "runs other code"),
        (_with_more_than_asked, "not asked for: 'patients'"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_broken_update_is_refused_by_name_and_the_rest_average_as_if_it_were_absent(
    change, told, phantom_64px, tmp_path, tampered_run
):
    config = small_config(phantom_64px, federation={"num_rounds": 1, "released_round": "last"})
    released, history, updates = tampered_run(config, tmp_path / "run", "hospital-2", change)
    refused = next(event for event in history if event["event"] == "round")["refused"]
    assert list(refused) == ["hospital-2"]
    assert told in refused["hospital-2"]
    assert same_weights(released.weights, image_weighted_mean([updates["hospital-1"], updates["hospital-3"]]))


def test_a_deadline_never_loses_a_hospital_that_is_only_waiting_for_its_turn(phantom_64px, tmp_path):
    """In one process hospitals train one after another: how long that takes must not change the result."""
    hurried = small_config(phantom_64px, federation={"round_timeout_s": 0.001, "min_hospitals": 1})
    one, history = _run(hurried, tmp_path / "hurried")
    two, _ = _run(small_config(phantom_64px), tmp_path / "patient")
    assert all(len(event["hospitals"]) == 3 for event in history if event["event"] == "round")
    assert same_weights(one.weights, two.weights)


@pytest.mark.parametrize(
    ("judged", "released"),
    [
        ([None, None, None], 3),
        ([0.6, 0.7, 0.65], 2),
        ([0.7, None, 0.7], 3),
        ([None, 0.5, None], 2),
    ],
)
def test_best_is_the_highest_validation_auroc_or_the_last_round(judged, released):
    candidate = None
    for number, auroc in enumerate(judged, start=1):
        candidate = better(candidate, Candidate(number, auroc))
    assert candidate.round_number == released


def test_too_few_fit_updates_end_the_run_as_failed_with_the_reasons(phantom_64px, tmp_path, tampered_run):
    config = small_config(phantom_64px, federation={"num_rounds": 1, "min_hospitals": 3})
    with pytest.raises(FederationError, match=r"(?s)2 hospital.*, and 3 are needed.*hospital-1: .*NaN"):
        tampered_run(config, tmp_path / "run", "hospital-1", _with_nan)
    end = _history(tmp_path / "run")[-1]
    assert (end["event"], end["status"]) == ("end", "failed")
    assert not (tmp_path / "run" / "global.safetensors").exists()


def test_an_error_at_a_hospital_reaches_the_centre_as_a_code_without_its_text(phantom_64px, tmp_path, caplog):
    prepared = prepare_run(small_config(phantom_64px, federation={"min_hospitals": 3}), tmp_path / "run")
    site = prepared.folder.hospitals_folder / "hospital-1" / "site.yaml"
    site.write_text(site.read_text().replace("root: ", "root: /secret/patient-4711"))
    with pytest.raises(FederationError) as refused:
        run_prepared(prepared, "inprocess")
    assert "code 102" in str(refused.value)
    assert "4711" not in str(refused.value)
    assert "4711" in caplog.text  # the hospital's own log says it


def test_a_grid_answers_one_message_a_pull_in_the_order_they_were_sent(phantom_64px, tmp_path):
    seen = []
    app = ClientApp()

    @app.query()
    def answer(message, context):
        seen.append(context.node_config["partition-id"])
        return Message(message.content, reply_to=message)

    grid = InProcessGrid(app, num_nodes=3, run_config={})
    messages = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    ids = list(grid.push_messages(messages))
    assert seen == []
    first = list(grid.pull_messages(ids))
    assert [reply.metadata.reply_to_message_id for reply in first] == [ids[0]]
    assert seen == [0]
    assert len(list(grid.send_and_receive(messages[:0]))) == 0
    assert [reply.metadata.reply_to_message_id for _ in range(2) for reply in grid.pull_messages(ids)] == ids[1:]
    assert list(grid.pull_messages(ids)) == []


def test_the_centres_test_images_score_every_round_where_it_wants_that_and_choose_nothing(phantom_64px, tmp_path):
    prepared = prepare_run(small_config(phantom_64px), tmp_path / "run")
    grid = InProcessGrid(
        client_app,
        num_nodes=3,
        run_config={"hospitals": str(prepared.folder.hospitals_folder), "config": str(prepared.folder.config_file)},
    )
    settings = RunSettings.of_simulation(prepared.config).model_copy(update={"is_tested_each_round": True})
    run_and_release(grid, settings, prepared.folder, expected_nodes=3)
    history = _history(tmp_path / "run")
    tested = [event for event in history if event["event"] == "test"]
    assert [event["round"] for event in tested] == [1, 2]
    released = history[-1]["released_round"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert tested[released - 1]["macro_auroc"] == metrics["macro_auroc"]
    card = json.loads((tmp_path / "run" / "model_card.json").read_text())
    assert card["figures"]["test"]["macro_auroc"] == metrics["macro_auroc"]
    assert (
        card["hospitals"]["hospital-1"]["num_train_images"] == history[0]["hospitals"]["hospital-1"]["num_train_images"]
    )
    assert "Test AUROC" in (tmp_path / "run" / "report.html").read_text()
