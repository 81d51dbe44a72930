"""The egress guard: whatever a handler answers, nothing leaves that is not on the list."""

import json
import os

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from safetensors.numpy import save

from aecnn import contract
from aecnn.contract import CODE_TEXT, CODE_WITHHELD, HospitalCounts, RoundReport, ValidationReport
from aecnn.errors import ModelError
from aecnn.evaluation.histogram import NUM_BINS
from aecnn.model.weights import unpack_weights
from client import guard as guard_module
from client.app import app as installed_app
from client.guard import guard_egress
from client.policy import refuse_against_policy
from client.wire import packed_record, to_array_record
from hospital_in_process import PLAN, asked, centre_message, hospital_folder, initial_weights, write_site

PATIENT = "patient-4711"


@pytest.fixture(scope="module")
def weights():
    return initial_weights()


@pytest.fixture
def site(phantom_64px, tmp_path):
    return hospital_folder(tmp_path / "st-mary", phantom_64px)


def _honest(weights):
    """What a handler that behaves would answer to a train message."""
    counts = np.zeros((14, 2, NUM_BINS), dtype=np.int32)
    counts[:, 0, 3] = 5
    report = RoundReport(
        num_images=9, num_steps=2, images_seen=8, bce_sum=5.0, mse_sum=0.5, alive_pixels=3, lit_pixels=4, seconds=1.0
    )
    return RecordDict(
        {
            contract.REPORT: MetricRecord(report.to_wire()),
            contract.VALIDATION: MetricRecord(ValidationReport(num_images=5, bce_sum=3.0, mse_sum=0.2).to_wire()),
            contract.HISTOGRAMS: to_array_record({contract.SCORE_COUNTS: counts}),
            contract.WEIGHTS: packed_record(weights),
        }
    )


def _guarded(handler, kind=contract.TRAIN):
    app = ClientApp(mods=[guard_egress, refuse_against_policy])
    register = {contract.TRAIN: app.train, contract.EVALUATE: app.evaluate, contract.JOIN: app.query}[kind]
    register()(handler)
    return app


def _answering(content):
    return _guarded(lambda message, context: Message(content, reply_to=message))


def _assert_code(reply, code):
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (code, CODE_TEXT[code])


def test_an_honest_answer_leaves_whole_and_with_the_guards_own_origin(weights, site):
    message = centre_message(contract.TRAIN, weights=weights)
    reply = asked(_answering(_honest(weights)), message, site)
    assert set(reply.content) == set(contract.RECORDS_OF[contract.TRAIN]) - {contract.AUDIT}
    assert reply.content[contract.ORIGIN]["hospital"] == "st-mary"
    assert reply.content[contract.WEIGHTS]["packed"].data == packed_record(weights)["packed"].data
    assert reply.metadata.reply_to_message_id == "m-1"
    assert reply.metadata.message_type == contract.TRAIN


def _with(change):
    def answer(weights):
        content = _honest(weights)
        change(content, weights)
        return content

    return answer


def _scalar(record, kind, **values):
    def change(content, weights):
        content[record] = kind({**content[record], **values})

    return change


def _packed(make):
    """Replaces the packed weights by other bytes."""

    def change(content, weights):
        made = make(dict(weights))
        packed = made if isinstance(made, bytes) else save({k: np.ascontiguousarray(v) for k, v in made.items()})
        content[contract.WEIGHTS] = to_array_record({contract.PACKED: np.frombuffer(packed, dtype=np.uint8)})

    return change


def _changed(weights, **arrays):
    first = next(iter(weights))
    return weights | {first: arrays["as_"](weights[first])}


def _nan(array):
    array = array.copy()
    array.flat[0] = np.nan
    return array


def _slack_in_npy(content, weights):
    array = content[contract.WEIGHTS][contract.PACKED]
    array.data = array.data + PATIENT.encode()


def _npy_header_of_ones_own(content, weights):
    array = content[contract.WEIGHTS][contract.PACKED]
    padding = array.data.index(b"}") + 1
    array.data = array.data[:padding] + b" # " + PATIENT.encode() + array.data[padding + 3 + len(PATIENT) :]


def _other_chunks(content, weights):
    """Flower sends what it cached when the array was cut up, not what the array holds now."""
    array = content[contract.WEIGHTS][contract.PACKED]
    other = Array(np.zeros(8, dtype=np.uint8))
    array.__dict__["_chunks"] = other.slice_array()


def _histogram(make):
    def change(content, weights):
        counts = content[contract.HISTOGRAMS][contract.SCORE_COUNTS].numpy()
        content[contract.HISTOGRAMS] = to_array_record({contract.SCORE_COUNTS: make(counts.copy())})

    return change


def _first_cell(value):
    def make(counts):
        counts[0, 0, 0] = value
        return counts

    return make


HOSTILE = {
    "extra-record": lambda c, w: c.__setitem__("notes", ConfigRecord({"text": PATIENT})),
    "record-of-another-message": lambda c, w: c.__setitem__(contract.COUNTS, ConfigRecord({"a": 1})),
    "an-origin-of-its-own": lambda c, w: c.__setitem__(contract.ORIGIN, ConfigRecord({"hospital": PATIENT})),
    "an-audit-head-of-its-own": lambda c, w: c.__setitem__(contract.AUDIT, ConfigRecord({"length": 1})),
    "a-record-of-another-type": lambda c, w: c.__setitem__(contract.REPORT, ConfigRecord({"text": PATIENT})),
    "extra-scalar": _scalar(contract.REPORT, MetricRecord, **{"age-sum": 3.0}),
    "more-images-than-there-are": _scalar(contract.REPORT, MetricRecord, **{"num-images": 10**6}),
    "more-steps-than-asked": _scalar(contract.REPORT, MetricRecord, **{"num-steps": 3}),
    "negative-sum": _scalar(contract.VALIDATION, MetricRecord, **{"bce-sum": -1.0}),
    "infinite-sum": _scalar(contract.VALIDATION, MetricRecord, **{"bce-sum": float("inf")}),
    "ids-in-a-list": _scalar(contract.REPORT, MetricRecord, **{"num-images": [4711, 4712]}),
    "extra-tensor": _packed(lambda w: w | {PATIENT: np.zeros(3, dtype=np.float32)}),
    "missing-tensor": _packed(lambda w: dict(list(w.items())[1:])),
    "renamed-tensor": _packed(lambda w: {k + "x" * (i == 0): v for i, (k, v) in enumerate(w.items())}),
    "float64": _packed(lambda w: _changed(w, as_=lambda a: a.astype(np.float64))),
    "nan": _packed(lambda w: _changed(w, as_=_nan)),
    "infinity": _packed(lambda w: _changed(w, as_=lambda a: np.full_like(a, np.inf))),
    "larger-tensor": _packed(lambda w: _changed(w, as_=lambda a: np.concatenate([a, a]))),
    "other-shape": _packed(lambda w: _changed(w, as_=lambda a: a.reshape(-1))),
    "metadata": _packed(lambda w: save(w, metadata={"note": PATIENT})),
    "bytes-at-the-end": _packed(lambda w: save(w) + PATIENT.encode()),
    "no-safetensors": _packed(lambda w: PATIENT.encode() * 100),
    "spaces-in-the-header": _packed(lambda w: _with_longer_header(save(w))),
    "bytes-behind-the-npy": _slack_in_npy,
    "a-comment-in-the-npy-header": _npy_header_of_ones_own,
    "two-arrays": lambda c, w: c[contract.WEIGHTS].__setitem__("more", Array(np.zeros(3, dtype=np.uint8))),
    "unpacked-weights": lambda c, w: c.__setitem__(contract.WEIGHTS, to_array_record({"a": np.zeros(3)})),
    "weights-without-report": lambda c, w: c.pop(contract.REPORT),
    "pickle": lambda c, w: c.__setitem__(
        contract.WEIGHTS, ArrayRecord({contract.PACKED: Array("uint8", (3,), "pickle", b"abc")})
    ),
    "histogram-of-floats": _histogram(lambda h: h.astype(np.float64)),
    "histogram-of-another-shape": _histogram(lambda h: h[:13]),
    "negative-count": _histogram(_first_cell(-1)),
    "more-counts-than-images": _histogram(_first_cell(10**5)),
    "counts-that-overflow": _histogram(lambda h: np.full_like(h, 2**31 - 1)),
}


def _with_longer_header(packed):
    length = int.from_bytes(packed[:8], "little")
    return (length + 8).to_bytes(8, "little") + packed[8 : 8 + length] + b" " * 8 + packed[8 + length :]


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_what_is_not_on_the_list_does_not_leave(change, weights, site):
    content = _with(change)(weights)
    reply = asked(_answering(content), centre_message(contract.TRAIN, weights=weights), site)
    _assert_code(reply, CODE_WITHHELD)


def test_chunks_that_a_handler_prepared_are_not_sent(weights, site):
    content = _with(_other_chunks)(weights)
    reply = asked(_answering(content), centre_message(contract.TRAIN, weights=weights), site)
    sent = b"".join(bytes(chunk.data) for _, chunk in reply.content[contract.WEIGHTS]["packed"].slice_array())
    assert sent == packed_record(weights)["packed"].data


def test_an_exceptions_text_stays_here(weights, site, caplog):
    def failing(error):
        def handler(message, context):
            raise error

        return _guarded(handler)

    message = centre_message(contract.TRAIN, weights=weights)
    _assert_code(asked(failing(OSError(f"/data/{PATIENT}.png")), message, site), contract.CODE_FAILED)
    _assert_code(asked(failing(ModelError(f"about {PATIENT}")), message, site), contract.CODE_REFUSED)
    assert caplog.text.count(PATIENT) >= 2


@pytest.mark.parametrize(
    ("code", "sent"), [(1, 100), (contract.CODE_LATER, 105), (4711, 100), (-4, 100), (10**12, 100)]
)
def test_an_error_reply_leaves_as_one_of_our_codes_with_our_text(code, sent, weights, site):
    app = _guarded(lambda message, context: Message(Error(code, PATIENT), reply_to=message))
    _assert_code(asked(app, centre_message(contract.TRAIN, weights=weights), site), sent)


def test_an_answer_to_another_message_does_not_leave(weights, site):
    for other in (
        centre_message(contract.TRAIN, weights=weights, message_id="m-2"),
        centre_message(contract.EVALUATE, weights=weights),
    ):
        app = _guarded(lambda message, context, other=other: Message(_honest(weights), reply_to=other))
        _assert_code(asked(app, centre_message(contract.TRAIN, weights=weights), site), CODE_WITHHELD)


def test_a_handler_that_answers_nothing_or_something_else_lets_nothing_leave(weights, site):
    for given in (None, PATIENT, {"content": PATIENT}):
        app = _guarded(lambda message, context, given=given: given)
        _assert_code(asked(app, centre_message(contract.TRAIN, weights=weights), site), CODE_WITHHELD)


def test_where_the_guard_itself_fails_nothing_leaves(weights, site, monkeypatch):
    def broken(*arguments):
        raise RuntimeError(PATIENT)

    message = centre_message(contract.TRAIN, weights=weights)
    for name in ("_rebuilt", "hospital_of", "request_of", "check_patients", "_own_records"):
        with monkeypatch.context() as patch:
            patch.setattr(guard_module, name, broken)
            _assert_code(asked(_answering(_honest(weights)), message, site), CODE_WITHHELD)


def test_without_a_policy_nothing_leaves_and_no_handler_runs(phantom_64px, site, weights):
    write_site(site, phantom_64px, has_policy=False)
    calls = []
    for kind in (contract.JOIN, contract.TRAIN, contract.EVALUATE):
        app = _guarded(lambda message, context: calls.append(message), kind)
        _assert_code(asked(app, centre_message(kind, weights=weights), site), CODE_WITHHELD)
    _assert_code(asked(installed_app, centre_message(contract.DELIVER, files={"a": b""}), site), CODE_WITHHELD)
    assert calls == []


def test_what_the_site_file_keeps_at_the_hospital_is_absent(phantom_64px, site, weights):
    flags = {"training_sums": False, "validation_sums": False, "histograms": False, "positives": False}
    write_site(site, phantom_64px, report=flags)
    reply = asked(_answering(_honest(weights)), centre_message(contract.TRAIN, weights=weights), site)
    assert set(reply.content) == {contract.ORIGIN, contract.REPORT, contract.WEIGHTS}
    assert set(reply.content[contract.REPORT]) == {"num-images", "num-steps", "images-seen", "seconds"}
    joined = asked(installed_app, centre_message(contract.JOIN, round=0), site).content[contract.COUNTS]
    assert HospitalCounts.from_wire(dict(joined)).positives is None
    write_site(site, phantom_64px)
    joined = asked(installed_app, centre_message(contract.JOIN, round=0), site).content[contract.COUNTS]
    assert len(joined["positives"]) == 14


def test_too_few_patients_or_steps_let_nothing_leave(phantom_64px, site, weights):
    write_site(site, phantom_64px, min_patients=1000)
    for kind in (contract.JOIN, contract.TRAIN, contract.EVALUATE):
        _assert_code(asked(installed_app, centre_message(kind, weights=weights), site), CODE_WITHHELD)
    write_site(site, phantom_64px, min_steps=3)
    _assert_code(asked(installed_app, centre_message(contract.TRAIN, weights=weights), site), CODE_WITHHELD)
    write_site(site, phantom_64px, min_steps=2)
    content = _with(_scalar(contract.REPORT, MetricRecord, **{"num-steps": 1, "images-seen": 4}))(weights)
    _assert_code(asked(_answering(content), centre_message(contract.TRAIN, weights=weights), site), CODE_WITHHELD)


def test_with_few_patients_in_validation_an_update_leaves_without_sums_and_a_judgement_not(phantom_64px, site, weights):
    few = {"validation_fraction": 0.1}  # 2 patients
    write_site(site, phantom_64px, min_patients=3)
    reply = asked(_answering(_honest(weights)), centre_message(contract.TRAIN, weights=weights, **few), site)
    assert set(reply.content) == {contract.ORIGIN, contract.REPORT, contract.WEIGHTS}
    calls = []
    app = _guarded(lambda message, context: calls.append(message), contract.EVALUATE)
    _assert_code(asked(app, centre_message(contract.EVALUATE, weights=weights, **few), site), CODE_WITHHELD)
    assert calls == []


def test_an_update_of_fewer_images_than_the_floor_of_patients_does_not_leave(phantom_64px, site, weights):
    write_site(site, phantom_64px, min_patients=5)
    content = _with(_scalar(contract.REPORT, MetricRecord, **{"images-seen": 4}))(weights)
    _assert_code(asked(_answering(content), centre_message(contract.TRAIN, weights=weights), site), CODE_WITHHELD)


def test_more_threads_than_processors_are_not_taken(site, weights, caplog):
    plan = PLAN.model_copy(update={"training": PLAN.training.model_copy(update={"num_threads": 10**6})})
    before = torch.get_num_threads()
    try:
        judged = [
            asked(installed_app, centre_message(contract.EVALUATE, weights=weights, plan=plan), site) for _ in range(2)
        ]
        assert torch.get_num_threads() == os.cpu_count()
    finally:
        torch.set_num_threads(before)
    assert all(reply.has_content() for reply in judged)
    assert caplog.text.count("1000000 threads") == 1


def test_the_installed_app_trains_judges_and_joins_under_the_default_policy(site, weights):
    trained = asked(installed_app, centre_message(contract.TRAIN, weights=weights), site).content
    assert set(trained) == set(contract.RECORDS_OF[contract.TRAIN]) - {contract.AUDIT}
    changed = unpack_weights(trained[contract.WEIGHTS]["packed"].numpy())
    assert any(not np.array_equal(changed[name], weights[name]) for name in weights)
    judged = asked(installed_app, centre_message(contract.EVALUATE, weights=weights), site).content
    assert set(judged) == {contract.ORIGIN, contract.VALIDATION, contract.HISTOGRAMS}
    assert set(asked(installed_app, centre_message(contract.JOIN), site).content) == {contract.ORIGIN, contract.COUNTS}


def test_a_message_that_carries_no_request_or_an_unknown_plan_is_refused(site, weights):
    empty = centre_message(contract.TRAIN, weights=weights)
    del empty.content[contract.REQUEST]
    _assert_code(asked(installed_app, empty, site), contract.CODE_REFUSED)
    plan = json.loads(centre_message(contract.JOIN).content[contract.REQUEST]["plan-json"])
    plan["training"]["upload_images"] = True
    unknown = centre_message(contract.TRAIN, weights=weights, plan_json=json.dumps(plan))
    _assert_code(asked(installed_app, unknown, site), contract.CODE_REFUSED)
