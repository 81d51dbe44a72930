"""The hospital's desk: a round is answered once, everything is in the log before it leaves, a crash loses nothing."""

import functools
import json
import shutil
from datetime import datetime

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from aecnn import contract
from aecnn.contract import AuditHead
from aecnn.errors import CheckpointError
from aecnn.model.checkpoint import CheckpointMetadata, save_checkpoint
from client import app as app_module
from client.app import app as installed_app
from client.audit import describe, entries, verify
from client.audit_log import AuditError
from client.desk import Desk
from client.guard import guard_egress
from client.inventory import inventory_of
from client.policy import refuse_against_policy
from client.progress import Progress
from client.state import SiteState
from client.wire import packed_bytes, packed_record, tensor_spans
from hospital_in_process import PLAN, RUN_ID, asked, centre_message, hospital_folder, initial_weights, write_site

NOON = datetime(2026, 3, 2, 12, 0)


@pytest.fixture(scope="module")
def weights():
    return initial_weights()


@pytest.fixture
def own_data(phantom_64px, tmp_path):
    """A dataset that a test may change."""
    return shutil.copytree(phantom_64px, tmp_path / "own-data")


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
    again = Desk(site, app).answer(message(message_id="m-2", last_refusal=contract.REFUSED_NORM))
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
    assert "answered to the centre: " in words[1]
    assert "the trained weights (128 arrays, 44.8 MB)" in words[1]


def test_the_audit_as_data_has_names_digests_and_scalars_and_the_code_of_a_refusal(site, weights):
    desk = Desk(site, _quick_app([]))
    reply = desk.answer(centre_message(contract.TRAIN, weights=weights))
    desk.answer(centre_message(contract.TRAIN, weights=weights, seed=9))
    came, made, _, refused = entries(site.audit_log)
    assert [came[key] for key in ("sequence", "direction", "kind", "run", "run_id", "round", "stage")] == [
        *(1, "in", "train", "small", RUN_ID, 1, "round 1")
    ]
    assert (came["decision"], came["from"], came["to"]) == ("received", "centre", "st-mary")
    assert (made["sequence"], made["direction"], made["decision"], made["code"]) == (2, "out", "answered", None)
    assert made["records"]["report"]["scalars"] == dict(reply.content[contract.REPORT])
    (array,) = made["records"]["weights"]["arrays"]
    assert array["name"] == "packed"
    assert len(array["sha256"]) == 64
    assert (refused["decision"], refused["code"], refused["records"]) == ("refused", contract.CODE_AGAINST_POLICY, {})
    assert refused["reason"].startswith("the request for round 1 of run")
    assert [entry["hash"] for entry in entries(site.audit_log)] == [line["hash"] for line in _lines(site)]
    assert entries(site.audit_log, since=made["time"][:10]) == entries(site.audit_log)
    assert entries(site.audit_log, since="2999-01-01") == []


def test_what_follows_the_last_round_is_called_by_its_name_and_not_a_round_more(site, weights, tmp_path):
    _take_part(site, weights)
    desk = Desk(site, installed_app)
    desk.answer(centre_message(contract.EVALUATE, weights=weights, round=4))
    assert json.loads(site.status.read_text())["kind"] == contract.EVALUATE
    desk.answer(centre_message(contract.DELIVER, files=_released(tmp_path, weights), round=4))
    told = "\n".join(describe(site.audit_log))
    assert "evaluation after round 3: the centre asked to judge a model" in told
    assert "delivery: the centre asked to take the released model" in told
    assert "round 4" not in told


def test_another_question_under_the_same_round_is_not_answered(site, weights):
    calls = []
    desk = Desk(site, _quick_app(calls))
    other = {name: array + 1 for name, array in weights.items()}
    assert _code(desk.answer(centre_message(contract.TRAIN, weights=weights))) == 0
    training = PLAN.training.model_copy(update={"learning_rate": 1e-4})
    for changes in (
        {"weights": other},
        {"weights": weights, "seed": 4},
        {"weights": weights, "plan": PLAN.model_copy(update={"training": training})},
    ):
        reply = desk.answer(centre_message(contract.TRAIN, **changes))
        assert _code(reply) == contract.CODE_AGAINST_POLICY
        assert "a round is answered once" in _lines(site)[-1]["decision"]
    assert calls == [1]
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
    forgotten = desk.answer(centre_message(contract.TRAIN, weights=weights, round=1))
    assert _code(forgotten) == contract.CODE_AGAINST_POLICY
    assert "too old to be kept" in _lines(site)[-1]["decision"]
    assert calls == [1, 2, 3, 4]


def _other_policy(site, data):
    write_site(site, data, min_steps=2)


def _another_withdrawal(site, data):
    (data / "excluded_patients.txt").write_text("1\n")


def _other_bytes(site, data):
    file = next(site.replies.iterdir())
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def _no_file(site, data):
    next(site.replies.iterdir()).unlink()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_other_policy, "the policy or a list of withdrawn patients changed"),
        (_another_withdrawal, "the policy or a list of withdrawn patients changed"),
        (_other_bytes, "not the one that was made"),
        (_no_file, "cannot be read"),
    ],
)
def test_a_round_is_not_answered_a_second_time_with_other_content(site, weights, own_data, change, told):
    write_site(site, own_data)
    calls = []
    desk = Desk(site, _quick_app(calls))
    message = functools.partial(centre_message, contract.TRAIN, weights=weights)
    assert _code(desk.answer(message())) == 0
    change(site, own_data)
    assert _code(desk.answer(message())) == contract.CODE_AGAINST_POLICY
    assert told in _lines(site)[-1]["decision"]
    assert calls == [1]
    assert _code(desk.answer(message(round=2))) == 0


def test_without_a_policy_not_even_an_answer_that_was_given_is_sent_again(site, weights, phantom_64px):
    desk = Desk(site, _quick_app([]))
    message = functools.partial(centre_message, contract.TRAIN, weights=weights)
    desk.answer(message())
    write_site(site, phantom_64px, has_policy=False)
    assert _code(desk.answer(message())) != 0
    assert _code(desk.answer(message(round=2))) == contract.CODE_WITHHELD
    assert "withheld (code 104): the site file has no policy" in _lines(site)[-1]["decision"]
    assert "answered to the centre: a code alone, withheld (code 104): the site" in describe(site.audit_log)[-1]


def test_other_working_hours_do_not_undo_an_answer(site, weights, phantom_64px):
    calls = []
    desk = Desk(site, _quick_app(calls), clock=lambda: NOON)
    message = functools.partial(centre_message, contract.TRAIN, weights=weights)
    desk.answer(message())
    write_site(site, phantom_64px, working_hours="11:00-13:00")
    assert _code(desk.answer(message())) == 0
    assert calls == [1]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda site, data: SiteState(site.database).withdraw(RUN_ID), contract.CODE_WITHDRAWN),
        (_other_policy, contract.CODE_WITHHELD),
        (_another_withdrawal, contract.CODE_WITHHELD),
        (lambda site, data: SiteState(site.database).pause(), 0),  # what is under way is finished
    ],
)
def test_what_a_hospital_thinks_better_of_during_a_training_does_not_leave(site, weights, own_data, change, code):
    write_site(site, own_data)
    honest = _quick_app([])

    def app(message, context):
        reply = honest(message, context)
        change(site, own_data)
        return reply

    site.checkpoint.write_bytes(b"of the training")
    reply = Desk(site, app).answer(centre_message(contract.TRAIN, weights=weights))
    assert _code(reply) == code
    assert len(list(site.replies.iterdir())) == (code == 0)
    assert site.checkpoint.exists() == (code == contract.CODE_WITHDRAWN)
    assert bool(_lines(site)[-1]["records"]) == (code == 0)


def test_the_validation_share_first_answered_is_the_only_one_until_the_site_file_names_another(
    site, weights, phantom_64px
):
    def code(fraction, **changes):
        message = centre_message(contract.TRAIN, weights=weights, validation_fraction=fraction, **changes)
        return _code(Desk(site, _quick_app([])).answer(message))

    assert code(0.25) == 0
    assert code(0.3, round=2) == contract.CODE_AGAINST_POLICY
    for told in ("share is 0.3, and 0.25 was answered before", "policy.accept.validation_fraction"):
        assert told in _lines(site)[-1]["decision"]
    assert code(0.3, run_id="f" * 16) == contract.CODE_AGAINST_POLICY
    assert code(0.25, round=2) == 0
    write_site(site, phantom_64px, accept={"validation_fraction": 0.3})
    assert code(0.25, round=3) == contract.CODE_AGAINST_POLICY
    assert code(0.3, round=3) == 0


def test_new_runs_are_answered_up_to_the_site_files_number(site, weights, phantom_64px):
    write_site(site, phantom_64px, accept={"max_runs": 2})
    desk = Desk(site, _quick_app([]))
    code = lambda number, **more: _code(  # noqa: E731
        desk.answer(centre_message(contract.TRAIN, weights=weights, run_id=f"{number:016x}", **more))
    )
    assert [code(1), code(2), code(3)] == [0, 0, contract.CODE_AGAINST_POLICY]
    assert "2 runs were answered here, policy.accept.max_runs is 2" in _lines(site)[-1]["decision"]
    assert code(1, round=2) == 0
    write_site(site, phantom_64px, accept={"max_runs": 3})
    assert code(3) == 0


def test_why_the_centre_refused_the_last_update_is_logged_in_words(site, weights, caplog):
    message = centre_message(contract.TRAIN, weights=weights, last_refusal=contract.REFUSED_NORM)
    assert _code(Desk(site, _quick_app([])).answer(message)) == 0
    assert contract.REFUSAL_TEXT[contract.REFUSED_NORM] in caplog.text


def _npy(header):
    raw = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw


def _safetensors(header):
    packed = len(header).to_bytes(8, "little") + header.encode()
    return _npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({len(packed)},)}}") + packed


@pytest.mark.parametrize(
    "data",
    [
        _npy("{'descr': '|u1', 1: False, 'shape': (3,)}"),
        _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1e999,)}"),
        _npy("[" * 100),
        _npy("{'descr': ['', 7], 'fortran_order': False, 'shape': (3,)}"),
        _safetensors('{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 4]}}'),
        _safetensors('{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1e999]}}'),
        _safetensors('{"a":' * 100_000),
        _safetensors("[" * 100_000),
        _safetensors("3"),
    ],
)
def test_weights_made_with_ill_will_are_malformed_weights_and_nothing_worse(site, data):
    message = centre_message(contract.TRAIN)
    message.content[contract.WEIGHTS] = ArrayRecord({"packed": Array("uint8", (3,), "numpy.ndarray", data)})
    with pytest.raises(CheckpointError):
        tensor_spans(packed_bytes(message.content[contract.WEIGHTS]["packed"]))
    assert _code(Desk(site, installed_app).answer(message)) == contract.CODE_REFUSED
    assert [line["direction"] for line in _lines(site)] == ["in", "out"]


def test_whatever_fails_at_the_desk_is_a_line_and_a_code(site, weights, monkeypatch):
    def fails(*arguments, **more):
        raise RuntimeError("\x1b[31mred")

    for name, code in (
        ("inventory_of", contract.CODE_REFUSED),
        ("request_of", contract.CODE_REFUSED),
        ("check_available", contract.CODE_FAILED),
        ("request_digest", contract.CODE_FAILED),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"client.desk.{name}", fails)
            assert _code(Desk(site, installed_app).answer(centre_message(contract.JOIN))) == code
    assert [line["direction"] for line in _lines(site)] == ["in", "out"] * 4


def test_text_of_the_centre_neither_forges_lines_nor_fills_the_log(site, caplog):
    message = centre_message("query.shell")
    message.content["odd\r\nname"] = ConfigRecord({"many": list(range(500)), "text": "a\x07b"})
    message.content["arrays"] = ArrayRecord({f"a{n}": Array(np.zeros(1)) for n in range(50)})
    assert _code(Desk(site, installed_app).answer(message)) == contract.CODE_REFUSED
    line, _ = _lines(site)
    records = line["records"]
    assert set(records) == {"request", "odd\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}name", "arrays"}
    odd = records["odd\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}name"]["scalars"]
    assert (odd["many"], odd["many_in_all"]) == (list(range(20)), 500)
    assert odd["text"] == "a\N{REPLACEMENT CHARACTER}b"
    assert (len(records["arrays"]["arrays"]), records["arrays"]["arrays_in_all"]) == (20, 50)
    for text in (caplog.text.replace("\n", ""), *describe(site.audit_log)):
        assert text.isprintable()
    assert verify(site.audit_log, SiteState(site.database).audit_head()) == []


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


def _take_part(site, weights):
    assert _code(Desk(site, _quick_app([])).answer(centre_message(contract.TRAIN, weights=weights))) == 0


def test_the_model_of_a_run_that_was_never_answered_here_is_not_taken(site, weights, tmp_path):
    desk, files = Desk(site, _quick_app([])), _released(tmp_path, weights)
    _take_part(site, weights)
    other = desk.answer(centre_message(contract.DELIVER, files=files, run_id="f" * 16))
    assert _code(other) == contract.CODE_AGAINST_POLICY
    assert "never answered here" in _lines(site)[-1]["decision"]
    assert not site.models.exists()


def test_the_released_model_report_and_card_are_kept_whole(site, weights, tmp_path):
    _take_part(site, weights)
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
    _take_part(site, weights)
    files, desk = _released(tmp_path, weights), Desk(site, installed_app)
    truncated = files | {"global.safetensors": files["global.safetensors"][:-9]}
    with_nan = _released(tmp_path, weights | {"encoder.2.bias": np.full(1, np.nan, np.float32)})
    for faulty in (
        files | {"../../evil": b"x"},
        {"report.html": b"x"},
        truncated,
        with_nan,
        files | {"report.html": np.zeros(3)},
    ):
        reply = desk.answer(centre_message(contract.DELIVER, files=faulty, round=2))
        assert _code(reply) == contract.CODE_REFUSED
    assert not site.models.exists() or not list(site.models.iterdir())
    assert not (tmp_path / "evil").exists()


def test_a_hospital_that_wants_no_released_files_answers_and_keeps_nothing(site, weights, tmp_path, phantom_64px):
    _take_part(site, weights)
    write_site(site, phantom_64px, accept={"released_files": False})
    reply = Desk(site, installed_app).answer(centre_message(contract.DELIVER, files=_released(tmp_path, weights)))
    assert set(reply.content) == {contract.ORIGIN, contract.AUDIT}
    assert not site.models.exists()


def test_packed_weights_are_the_npy_file_that_flower_itself_would_make(weights):
    from flwr.app import Array

    from aecnn.model.weights import pack_weights

    assert packed_record(weights)["packed"].data == Array(pack_weights(weights)).data
