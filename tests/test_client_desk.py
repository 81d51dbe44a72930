"""The hospital's desk: a round is answered once, everything is in the log before it leaves, a crash loses nothing."""

import functools
import json
from datetime import datetime

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from aecnn import contract
from aecnn.contract import AuditHead
from aecnn.model.checkpoint import CheckpointMetadata, save_checkpoint
from client import app as app_module
from client.app import app as installed_app
from client.audit import describe, verify
from client.audit_log import AuditError
from client.desk import Desk
from client.guard import guard_egress
from client.inventory import inventory_of
from client.policy import refuse_against_policy
from client.progress import Progress
from client.state import SiteState
from client.wire import packed_record
from hospital_in_process import PLAN, RUN_ID, asked, centre_message, hospital_folder, initial_weights, write_site

NOON = datetime(2026, 3, 2, 12, 0)


@pytest.fixture(scope="module")
def weights():
    return initial_weights()


@pytest.fixture
def site(phantom_64px, tmp_path):
    return hospital_folder(tmp_path / "st-mary", phantom_64px)


class Counted(ClientApp):
    """The installed app, which counts what reaches it."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __call__(self, message, context):
        """Counts, and answers."""
        self.calls.append(message.metadata.message_type)
        return installed_app(message, context)


def _quick_app(calls):
    """An app under the same guard whose training is only a copy of what arrived."""
    app = ClientApp(mods=[guard_egress, refuse_against_policy])

    @app.train()
    def train(message, context):
        calls.append(message.content[contract.REQUEST]["round"])
        report = {"num-images": 9, "num-steps": 2, "images-seen": 8, "seconds": 0.5}
        content = RecordDict({contract.REPORT: app_module.MetricRecord(report)})
        content[contract.WEIGHTS] = message.content[contract.WEIGHTS]
        return Message(content, reply_to=message)

    return app


def _lines(site):
    return [json.loads(line) for line in site.audit_log.read_text().splitlines()]


def _code(reply):
    return reply.error.code if reply.has_error() else 0


def test_a_repeated_request_gets_the_same_content_without_training_also_after_a_restart(site, weights):
    app = Counted()
    message = functools.partial(centre_message, contract.TRAIN, weights=weights)
    first = Desk(site, app).answer(message())
    again = Desk(site, app).answer(message(message_id="m-2", last_update_refused=True))
    assert app.calls == [contract.TRAIN]
    assert inventory_of(again.content) == inventory_of(first.content)
    assert again.content[contract.WEIGHTS]["packed"].data == first.content[contract.WEIGHTS]["packed"].data
    assert again.metadata.reply_to_message_id == "m-2"
    assert [line["decision"] for line in _lines(site)] == ["received", "answered", "received", "resent"]
    plain = asked(installed_app, message(), site)  # a simulation gives the same weights
    assert plain.content[contract.WEIGHTS]["packed"].data == first.content[contract.WEIGHTS]["packed"].data


def test_the_answer_holds_the_head_of_the_log_after_its_own_question(site, weights):
    desk = Desk(site, _quick_app([]))
    for number in (1, 2):
        reply = desk.answer(centre_message(contract.TRAIN, weights=weights, round=number))
        head = AuditHead.from_wire(dict(reply.content[contract.AUDIT]))
        line = _lines(site)[head.length - 1]
        assert (line["direction"], line["round"], line["hash"]) == ("in", number, head.head)


def test_the_log_names_every_tensor_and_scalar_that_left(site, weights):
    import hashlib

    reply = Desk(site, _quick_app([])).answer(centre_message(contract.TRAIN, weights=weights))
    came, left = _lines(site)
    assert (came["from"], came["to"], left["to"]) == ("centre", "st-mary", "centre")
    assert came["records"]["request"]["scalars"]["seed"] == 3
    tensors = {tensor["name"]: tensor for tensor in left["records"]["weights"]["arrays"][0]["tensors"]}
    assert set(tensors) == set(weights)
    bias = tensors["classifier.fc.bias"]
    assert bias["sha256"] == hashlib.sha256(weights["classifier.fc.bias"].tobytes()).hexdigest()
    assert (bias["dtype"], bias["shape"], bias["bytes"]) == ("F32", [14], 56)
    assert left["records"]["report"]["scalars"] == dict(reply.content[contract.REPORT])
    assert verify(site.audit_log, SiteState(site.database).audit_head()) == []
    words = describe(site.audit_log)
    assert "round 1: the centre asked to train (44." in words[0]
    assert "this left for the centre: " in words[1]
    assert "the trained weights (128 arrays, 44.8 MB)" in words[1]


def test_another_question_under_the_same_round_is_not_answered(site, weights):
    calls = []
    desk = Desk(site, _quick_app(calls))
    other = {name: array + 1 for name, array in weights.items()}
    assert _code(desk.answer(centre_message(contract.TRAIN, weights=weights))) == 0
    for changes in (
        {"weights": other},
        {"weights": weights, "seed": 4},
        {"weights": weights, "validation_fraction": 0.3},
    ):
        reply = desk.answer(centre_message(contract.TRAIN, **changes))
        assert _code(reply) == contract.CODE_AGAINST_POLICY
    assert calls == [1]
    assert "a round is answered once" in _lines(site)[-1]["decision"]
    assert _code(desk.answer(centre_message(contract.TRAIN, weights=other, run_id="f" * 16))) == 0  # another run


def test_replies_of_the_last_two_rounds_are_kept_and_that_older_ones_were_given_is_not_forgotten(site, weights):
    calls = []
    desk = Desk(site, _quick_app(calls))
    for number in (1, 2, 3, 4):
        desk.answer(centre_message(contract.TRAIN, weights=weights, round=number))
    assert sorted(path.name for path in site.replies.iterdir()) == [
        f"{RUN_ID}-train-000003.safetensors",
        f"{RUN_ID}-train-000004.safetensors",
    ]
    other = {name: array + 1 for name, array in weights.items()}
    assert _code(desk.answer(centre_message(contract.TRAIN, weights=other, round=1))) == contract.CODE_AGAINST_POLICY
    desk.answer(centre_message(contract.TRAIN, weights=weights, round=3))
    assert calls == [1, 2, 3, 4]


def test_a_reply_that_was_made_under_another_policy_or_was_changed_on_disk_is_made_anew(site, weights, phantom_64px):
    calls = []
    desk = Desk(site, _quick_app(calls))
    message = functools.partial(centre_message, contract.TRAIN, weights=weights)
    desk.answer(message())
    write_site(site, phantom_64px, min_steps=2)
    assert _code(desk.answer(message())) == 0
    assert calls == [1, 1]
    file = next(site.replies.iterdir())
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert _code(desk.answer(message())) == 0
    assert calls == [1, 1, 1]
    write_site(site, phantom_64px, has_policy=False)
    assert _code(desk.answer(message())) == contract.CODE_WITHHELD
    assert "withheld (code 104): the site file has no policy" in _lines(site)[-1]["decision"]
    assert "nothing left but a code" in describe(site.audit_log)[-1]


def test_a_training_that_a_crash_ended_goes_on_from_its_checkpoint(site, weights, monkeypatch):
    every_step = functools.partial(app_module.LocalCheckpoint, interval_s=0.0)
    monkeypatch.setattr(app_module, "LocalCheckpoint", every_step)
    message = functools.partial(centre_message, contract.TRAIN, weights=weights)
    steps = []

    def tell_step(self, done, total):
        steps.append(done)
        if steps == [1]:
            raise SystemExit

    monkeypatch.setattr(Progress, "tell_step", tell_step)
    with pytest.raises(SystemExit):
        Desk(site, installed_app).answer(message())
    assert site.checkpoint.exists()
    assert [line["direction"] for line in _lines(site)] == ["in"]
    resumed = Desk(site, installed_app).answer(message())
    assert steps == [1, 2]
    assert not site.checkpoint.exists()
    whole = asked(installed_app, message(), site)
    assert resumed.content[contract.WEIGHTS]["packed"].data == whole.content[contract.WEIGHTS]["packed"].data


def test_a_reply_that_was_kept_and_not_sent_goes_out_after_the_crash(site, weights, monkeypatch):
    calls = []
    message = functools.partial(centre_message, contract.TRAIN, weights=weights)
    desk = Desk(site, _quick_app(calls))
    append, lines = desk._audit.append, []

    def crash_before_the_second(line):
        lines.append(line)
        if len(lines) == 2:
            raise SystemExit
        return append(line)

    monkeypatch.setattr(desk._audit, "append", crash_before_the_second)
    with pytest.raises(SystemExit):
        desk.answer(message())
    assert _code(Desk(site, _quick_app(calls)).answer(message())) == 0
    assert calls == [1]
    assert [line["decision"] for line in _lines(site)] == ["received", "received", "resent"]


def test_messages_that_say_nothing_known_get_a_code_and_a_line(site, weights):
    desk = Desk(site, installed_app)
    no_request = centre_message(contract.TRAIN)
    del no_request.content[contract.REQUEST]
    strange = centre_message("query.shell")
    strange.content["x"] = ConfigRecord({"nan": float("nan"), "text": "é" * 70_000, "raw": b"abc", "many": [1.0, 2.0]})
    error = Message(Error(0, "text"), reply_to=centre_message(contract.TRAIN))
    for message in (no_request, strange, error):
        assert _code(desk.answer(message)) == contract.CODE_REFUSED
    assert len(_lines(site)) == 6
    assert verify(site.audit_log, SiteState(site.database).audit_head()) == []
    assert len(describe(site.audit_log)) == 6
    bad_plan = centre_message(contract.TRAIN, weights=weights, plan_json="[]")
    assert _code(desk.answer(bad_plan)) == contract.CODE_REFUSED


def test_a_paused_or_withdrawn_hospital_does_not_even_resend(site, weights, phantom_64px):
    desk, state = Desk(site, _quick_app([]), clock=lambda: NOON), SiteState(site.database)
    message = functools.partial(centre_message, contract.TRAIN, weights=weights)
    assert _code(desk.answer(message())) == 0
    state.pause()
    assert _code(desk.answer(message())) == contract.CODE_LATER
    state.unpause()
    write_site(site, phantom_64px, working_hours="13:00-14:00")
    assert _code(desk.answer(message())) == contract.CODE_LATER
    state.withdraw(RUN_ID)
    assert _code(desk.answer(message())) == contract.CODE_WITHDRAWN


def test_a_log_that_was_tampered_with_keeps_the_desk_closed(site, weights):
    Desk(site, _quick_app([])).answer(centre_message(contract.TRAIN, weights=weights))
    site.audit_log.write_text(site.audit_log.read_text().splitlines()[0] + "\n")
    with pytest.raises(AuditError, match="nothing is answered"):
        Desk(site, installed_app)


def test_the_status_file_says_what_is_going_on(site, weights, monkeypatch):
    seen = []
    write = Progress._write

    def noted(self, more):
        write(self, more)
        seen.append(json.loads(site.status.read_text()))

    monkeypatch.setattr(Progress, "_write", noted)
    Desk(site, installed_app).answer(centre_message(contract.TRAIN, weights=weights))
    assert seen[0]["phase"] == "evaluating"
    last = seen[-1]
    assert (last["phase"], last["run"], last["round"]) == ("training", "small", 1)
    assert (last["steps_done"], last["steps"]) == (2, 2)


def _released(tmp_path, weights, plan=PLAN):
    path = tmp_path / "centre" / "global.safetensors"
    save_checkpoint(path, weights, CheckpointMetadata(model=plan.model, images=plan.images, round=2, run="small"))
    return {"global.safetensors": path.read_bytes(), "report.html": b"<html>", "model_card.md": b"# card"}


def test_the_released_model_report_and_card_are_kept_whole(site, weights, tmp_path):
    files, desk = _released(tmp_path, weights), Desk(site, installed_app)
    reply = desk.answer(centre_message(contract.DELIVER, files=files, round=2))
    assert set(reply.content) == {contract.ORIGIN, contract.AUDIT}
    folder = site.models / f"small-{RUN_ID}"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    again = files | {"report.html": b"<html>2"}
    assert _code(desk.answer(centre_message(contract.DELIVER, files=again, round=2))) == 0
    assert (folder / "report.html").read_bytes() == b"<html>2"
    assert [path.name for path in site.models.iterdir()] == [folder.name]


def test_what_is_no_released_model_is_not_kept(site, weights, tmp_path):
    files, desk = _released(tmp_path, weights), Desk(site, installed_app)
    truncated = files | {"global.safetensors": files["global.safetensors"][:-9]}
    with_nan = _released(tmp_path, weights | {"encoder.2.bias": np.full(1, np.nan, np.float32)})
    for faulty in (
        files | {"../../evil": b"x"},
        {"report.html": b"x"},
        truncated,
        with_nan,
        files | {"report.html": 3},
    ):
        reply = desk.answer(centre_message(contract.DELIVER, files=faulty, round=2))
        assert _code(reply) == contract.CODE_REFUSED
    assert not site.models.exists() or not list(site.models.iterdir())
    assert not (tmp_path / "evil").exists()


def test_a_hospital_that_wants_no_released_files_answers_and_keeps_nothing(site, weights, tmp_path, phantom_64px):
    write_site(site, phantom_64px, accept={"released_files": False})
    reply = Desk(site, installed_app).answer(centre_message(contract.DELIVER, files=_released(tmp_path, weights)))
    assert set(reply.content) == {contract.ORIGIN, contract.AUDIT}
    assert not site.models.exists()


def test_packed_weights_are_the_npy_file_that_flower_itself_would_make(weights):
    from flwr.app import Array

    from aecnn.model.weights import pack_weights

    assert packed_record(weights)["packed"].data == Array(pack_weights(weights)).data
