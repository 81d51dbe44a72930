"""What a hospital says of scores: the floor of patients, both modes, and sums by patient once a run."""

import stat

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from aecnn import contract
from aecnn.contract import CODE_AGAINST_POLICY, CODE_REFUSED, CODE_WITHHELD, PlacementReport
from aecnn.evaluation.floored import covers_grid, patients_by_class
from aecnn.evaluation.histogram import ScoreHistogram
from aecnn.evaluation.placements import PlacementSums
from aecnn.evaluation.pooled import PooledScores
from aecnn.privacy_config import PrivacyConfig
from client.app import app as installed_app
from client.desk import Desk
from client.guard import guard_egress
from client.judged import JudgedModels
from client.judging import validation_patients, validation_targets
from client.policy import refuse_against_policy
from client.site import read_hospital, read_training_data
from client.wire import to_array_record
from hospital_in_process import PLAN, asked, centre_message, hospital_folder, initial_weights, write_site

FLOOR = 3
HALF = {"validation_fraction": 0.5}  # some 24 patients


@pytest.fixture(scope="module")
def weights():
    return initial_weights()


@pytest.fixture
def site(phantom_64px, tmp_path):
    return hospital_folder(tmp_path / "st-mary", phantom_64px, min_patients=FLOOR)


def _place(weights, images, **changes) -> Message:
    message = centre_message(contract.PLACE, weights=weights, **HALF | {"round": 3} | changes)
    message.content[contract.POOLED] = to_array_record({contract.POOLED_IMAGES: images})
    return message


def _counts(site, weights) -> ScoreHistogram:
    reply = asked(installed_app, centre_message(contract.EVALUATE, weights=weights, **HALF), site)
    ((name, array),) = reply.content[contract.HISTOGRAMS].items()
    return ScoreHistogram(array.numpy().astype(np.int64), is_floored=name == contract.FLOORED_COUNTS)


def _pooled(histogram) -> np.ndarray:
    return PooledScores.of(histogram).placed


def _code(reply) -> int:
    return reply.error.code if reply.has_error() else 0


def _held(site):
    """How many validation patients have each finding and do not, told or not."""
    hospital = read_hospital(site.site)
    data = read_training_data(hospital, PLAN.images.size_px, 0.5)
    policy = hospital.config.policy.model_copy(update={"min_patients": 1})
    return patients_by_class(validation_targets(data, policy), validation_patients(data))


def test_a_finding_leaves_where_both_its_classes_have_as_many_patients_as_the_floor(phantom_64px, site, weights):
    held, told = _held(site), _counts(site, weights).told
    np.testing.assert_array_equal(told, (held >= FLOOR).all(axis=1))
    assert told.any()
    assert not told.all()
    write_site(site, phantom_64px, min_patients=1)
    np.testing.assert_array_equal(_counts(site, weights).told, held.any(axis=1))


def test_floored_counts_are_of_ranges_with_images_enough_and_go_under_their_own_name(phantom_64px, site, weights):
    fine = _counts(site, weights)
    write_site(site, phantom_64px, min_patients=FLOOR, report={"histogram_mode": "floored"})
    floored = _counts(site, weights)
    assert floored.is_floored
    assert covers_grid(floored.counts)
    assert floored.counts[floored.counts > 0].min() >= FLOOR
    np.testing.assert_array_equal(floored.told, (_held(site) >= 2 * FLOOR).all(axis=1))
    assert floored.told.any()
    np.testing.assert_array_equal(floored.counts[floored.told].sum(axis=-1), fine.counts[floored.told].sum(axis=-1))


@pytest.mark.parametrize("mode", ["fine", "floored"])
def test_sums_by_patient_are_of_the_told_findings(phantom_64px, site, weights, mode):
    write_site(site, phantom_64px, min_patients=FLOOR, report={"histogram_mode": mode})
    own = _counts(site, weights)
    reply = asked(installed_app, _place(weights, 2 * _pooled(own)), site)
    assert set(reply.content) == {contract.ORIGIN, contract.PLACEMENTS}
    sums = PlacementSums.of_report(PlacementReport.from_wire(dict(reply.content[contract.PLACEMENTS])))
    held = _held(site)
    told = (held >= (FLOOR if mode == "fine" else 2 * FLOOR)).all(axis=1)
    np.testing.assert_array_equal(own.told, told)
    np.testing.assert_array_equal(sums.patients[:, :2], np.where(told[:, None], held, 0)[:, ::-1])
    assert not sums.squares[~own.told].any()
    alone = PooledScores.of(own)
    errors = sums.standard_errors(alone + alone)
    assert np.isfinite(errors[own.told]).all()
    assert np.isnan(errors[~own.told]).all()
    assert sums.macro_standard_error() > 0


def test_a_made_up_histogram_is_refused(site, weights):
    own = _counts(site, weights)
    images, column = _pooled(own), int(np.flatnonzero(own.told)[0])
    without = images.copy()
    without[column, 0, np.argmax(images[column, 0])] -= 1
    assert _code(asked(installed_app, _place(weights, without), site)) == CODE_AGAINST_POLICY
    others = {name: array + np.float32(0.01) * (array.dtype == np.float32) for name, array in weights.items()}
    assert _code(asked(installed_app, _place(others, images), site)) in (CODE_AGAINST_POLICY, CODE_REFUSED)
    for odd in (
        images[:13],
        images.astype(np.float32),
        -images,
        np.full_like(images, np.nan),
        np.full_like(images, 1e9),
    ):
        assert _code(asked(installed_app, _place(weights, odd), site)) == CODE_REFUSED
    message = _place(weights, images)
    del message.content[contract.POOLED]
    assert _code(asked(installed_app, message, site)) == CODE_REFUSED


def test_sums_by_patient_stay_here_with_the_histograms_below_the_floor_and_under_privacy(phantom_64px, site, weights):
    images = _pooled(_counts(site, weights))
    private = PLAN.training.model_copy(
        update={"privacy": PrivacyConfig(noise_multiplier=1.0, sample_rate=0.5, total_steps=2)}
    )
    model = PLAN.model.model_copy(update={"normalisation": "group"})
    plan = PLAN.model_copy(update={"training": private, "model": model})
    assert _code(asked(installed_app, _place(weights, images, plan=plan), site)) == CODE_AGAINST_POLICY
    write_site(site, phantom_64px, min_patients=FLOOR, report={"histograms": False})
    assert _code(asked(installed_app, _place(weights, images), site)) == CODE_AGAINST_POLICY
    write_site(site, phantom_64px, min_patients=30)
    assert _code(asked(installed_app, _place(weights, images), site)) == CODE_WITHHELD


def _judged(desk, weights, **changes):
    message = centre_message(contract.EVALUATE, weights=weights, **HALF | {"round": 3} | changes)
    assert _code(desk.answer(message)) == 0


def test_a_run_is_placed_once_and_asked_the_same_again_gives_the_same(site, weights):
    desk, images = Desk(site, installed_app), _pooled(_counts(site, weights))
    _judged(desk, weights)
    first = desk.answer(_place(weights, images))
    assert _code(first) == 0
    _judged(desk, weights, run_id="f" * 16)  # another run between
    again = desk.answer(_place(weights, images, message_id="m-2"))
    assert dict(again.content[contract.PLACEMENTS]) == dict(first.content[contract.PLACEMENTS])
    for changes in ({"images": images + 1.0}, {"images": images, "round": 4}, {"images": images + 1.0, "round": 9}):
        assert _code(desk.answer(_place(weights, changes.pop("images"), **changes))) == CODE_AGAINST_POLICY
    assert _code(desk.answer(_place(weights, images + 1.0, run_id="f" * 16))) == 0


def test_a_refused_question_was_the_runs_one_question(site, weights):
    """Whether a made-up histogram is refused tells where scores lie: nobody gets to try one after another."""
    desk, images = Desk(site, installed_app), _pooled(_counts(site, weights))
    _judged(desk, weights)
    assert _code(desk.answer(_place(weights, np.zeros_like(images)))) == CODE_AGAINST_POLICY
    assert _code(desk.answer(_place(weights, images))) == CODE_AGAINST_POLICY
    assert "now says something else" in site.audit_log.read_text(encoding="utf-8").splitlines()[-1]


def test_a_model_that_was_not_judged_here_in_this_run_is_not_placed(site, weights):
    desk, images = Desk(site, installed_app), _pooled(_counts(site, weights))
    _judged(desk, weights, run_id="f" * 16)
    assert _code(desk.answer(_place(weights, images))) == CODE_AGAINST_POLICY
    others = {name: array * np.float32(1.01) if array.dtype == np.float32 else array for name, array in weights.items()}
    assert _code(desk.answer(_place(others, images, run_id="f" * 16))) == CODE_AGAINST_POLICY
    assert "was not judged here in this run" in site.audit_log.read_text(encoding="utf-8").splitlines()[-1]


@pytest.mark.parametrize("mode", ["fine", "floored"])
def test_sums_are_of_the_scores_whose_histogram_was_told_and_are_not_computed_anew(
    mode, phantom_64px, site, weights, monkeypatch
):
    write_site(site, phantom_64px, min_patients=FLOOR, report={"histogram_mode": mode})
    desk, own = Desk(site, installed_app), _counts(site, weights)
    _judged(desk, weights)
    monkeypatch.setattr("client.app.run_model", None)
    assert _code(desk.answer(_place(weights, _pooled(own)))) == 0


def test_only_the_last_runs_bins_are_kept(tmp_path):
    judged, bins = JudgedModels(tmp_path / "judged"), np.arange(28).reshape(2, 14)
    for number in range(6):
        for model in ("a", "b"):
            judged.keep(f"{number:016x}", model * 64, ["1.png", "2.png"], bins)
    found = [judged.find(f"{number:016x}", "b" * 64, ["1.png", "2.png"]) for number in range(6)]
    assert [one is not None for one in found] == [False, False, True, True, True, True]
    np.testing.assert_array_equal(found[-1], bins)
    assert judged.find(f"{5:016x}", "b" * 64, ["2.png", "1.png"]) is None  # of other images
    assert judged.find(f"{5:016x}", "c" * 64, ["1.png", "2.png"]) is None
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "judged").iterdir()} == {0o600}


def _honest(site, weights) -> dict:
    reply = asked(installed_app, _place(weights, _pooled(_counts(site, weights))), site)
    return dict(reply.content[contract.PLACEMENTS])


def _first(key, value):
    return lambda sums: sums | {key: [value, *sums[key][1:]]}


HOSTILE = {
    "extra-key": lambda sums: sums | {"scores": [0.1] * 14},
    "missing-key": lambda sums: {key: value for key, value in sums.items() if key != "products"},
    "other-numbers-of-patients": lambda sums: sums | {"positive-patients": [n + 1 for n in sums["positive-patients"]]},
    "sums-of-a-withheld-finding": lambda sums: sums | {"negative-squares": [s + 1e5 for s in sums["negative-squares"]]},
    "nan": lambda sums: sums | {"products": [float("nan")] * 14},
    "large-macro": lambda sums: sums | {"macro-square": 1e6},
    "many-patients": lambda sums: sums | {"num-patients": 10**6},
    "short": lambda sums: sums | {"products": [0.0]},
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_sums_that_are_not_on_the_list_do_not_leave(change, site, weights):
    sums = _honest(site, weights)
    app = ClientApp(mods=[guard_egress, refuse_against_policy])
    app.query("placements")(
        lambda message, context: Message(
            RecordDict({contract.PLACEMENTS: MetricRecord(change(sums))}), reply_to=message
        )
    )
    message = _place(weights, _pooled(_counts(site, weights)))
    assert _code(asked(app, message, site)) == CODE_WITHHELD


def test_histograms_do_not_leave_in_an_answer_with_sums(site, weights):
    images = _pooled(_counts(site, weights))
    content = RecordDict({contract.HISTOGRAMS: ArrayRecord({})})
    app = ClientApp(mods=[guard_egress, refuse_against_policy])
    app.query("placements")(lambda message, context: Message(content, reply_to=message))
    assert _code(asked(app, _place(weights, images), site)) == CODE_WITHHELD
