"""What a hospital lets itself be asked."""

from dataclasses import replace
from datetime import datetime, time

import numpy as np
import pytest

from aecnn import contract
from aecnn.contract import CODE_AGAINST_POLICY, CODE_LATER, CODE_WITHDRAWN, CODE_WITHHELD, Request
from aecnn.errors import ConfigError
from aecnn.training.seeds import derive_seed
from client.policy import check_available, check_batches, check_request, check_validation, is_within
from client.refusal import RefusalError
from client.site import AcceptedConfig, PolicyConfig, read_hospital, read_training_data
from client.state import EVERY_RUN, SiteState
from client.wire import request_of
from hospital_in_process import PLAN, RUN_ID, asked, centre_message, hospital_folder

NOON = datetime(2026, 3, 2, 12, 0)


def _request(kind=contract.TRAIN, **changes) -> Request:
    return request_of(centre_message(kind, **changes))


def _code_of(call):
    with pytest.raises(RefusalError) as refused:
        call()
    return refused.value.code, str(refused.value)


def _plan(*, size_px=64, **training):
    images = PLAN.images.model_copy(update={"size_px": size_px})
    return PLAN.model_copy(update={"images": images, "training": PLAN.training.model_copy(update=training)})


@pytest.mark.parametrize(
    ("accept", "request_", "kind", "told"),
    [
        ({"max_rounds": 3}, {"round": 4}, contract.TRAIN, "max_rounds is 3"),
        ({"max_rounds": 3}, {"round": 5}, contract.EVALUATE, "max_rounds is 3"),
        ({"backbones": ["densenet121"]}, {}, contract.TRAIN, "backbone is resnet18"),
        ({"backbones": ["densenet121"]}, {}, contract.JOIN, "backbone is resnet18"),
        ({"requires_privacy": True}, {}, contract.TRAIN, "without differential privacy"),
        ({}, {}, "query.shell", "'query.shell' are not answered"),
        ({"validation_fraction": 0.1}, {}, contract.JOIN, "the validation share is 0.25, "),
        ({}, {"plan": _plan(batch_size=4097)}, contract.TRAIN, "batches of 4097 images"),
    ],
)
def test_what_the_site_file_does_not_allow_is_refused(accept, request_, kind, told):
    code, reason = _code_of(lambda: check_request(AcceptedConfig(**accept), _request(**request_), kind))
    assert code == CODE_AGAINST_POLICY
    assert told in reason


def test_all_faults_are_told_at_once():
    accept = AcceptedConfig(max_rounds=1, backbones=("densenet121",), requires_privacy=True)
    _, reason = _code_of(lambda: check_request(accept, _request(round=9), contract.TRAIN))
    assert reason.count(";") == 2


def test_what_is_allowed_passes():
    accept = AcceptedConfig(max_rounds=3, backbones=("resnet18",))
    check_request(accept, _request(round=3), contract.TRAIN)
    check_request(accept, _request(round=4), contract.EVALUATE)  # the last model is judged after the last round
    check_request(AcceptedConfig(requires_privacy=True), _request(), contract.DELIVER)


@pytest.mark.parametrize("name", ["../../etc", "run\n", "r" * 65, "[/x]"])
def test_a_run_whose_name_can_be_no_folder_is_no_request(name):
    wire = dict(centre_message(contract.DELIVER).content[contract.REQUEST])
    with pytest.raises(ConfigError, match="run"):
        Request.from_wire(wire | {"run": name})


@pytest.mark.parametrize("changes", [{"local_steps": 2}, {"local_steps": 3, "batch_size": 5}])
def test_the_floor_counts_the_patients_of_the_batches_that_the_training_draws(phantom_64px, tmp_path, changes):
    hospital = read_hospital(hospital_folder(tmp_path / "h", phantom_64px).site)
    data, request = read_training_data(hospital, 64, 0.25), _request(plan=_plan(**changes), seed=11, round=2)
    order = np.random.default_rng(derive_seed(11, "st-mary", 2)).permutation(data.train_rows)
    drawn = order[: changes["local_steps"] * changes.get("batch_size", 4)]
    patients = {data.loaded.manifest.table["patient"].tolist()[row] for row in drawn}
    check_batches(PolicyConfig(min_patients=len(patients)), request, data, hospital="st-mary")
    above = PolicyConfig(min_patients=len(patients) + 1)
    code, reason = _code_of(lambda: check_batches(above, request, data, hospital="st-mary"))
    assert code == CODE_WITHHELD
    assert f"{len(patients)} patients are in the round's batches" in reason


def test_a_validation_part_of_few_patients_is_kept_in_and_an_empty_one_hides_nobody(phantom_64px, tmp_path):
    hospital = read_hospital(hospital_folder(tmp_path / "h", phantom_64px).site)
    data = read_training_data(hospital, 64, 0.25)
    found = len({data.loaded.manifest.table["patient"].tolist()[row] for row in data.validation_rows})
    check_validation(PolicyConfig(min_patients=found), data)
    assert _code_of(lambda: check_validation(PolicyConfig(min_patients=found + 1), data))[0] == CODE_WITHHELD
    check_validation(PolicyConfig(min_patients=found + 1), replace(data, validation_rows=data.validation_rows[:0]))


def test_a_key_this_installation_does_not_know_is_refused():
    with pytest.raises(ConfigError, match="upload"):
        Request.from_wire(dict(centre_message(contract.JOIN).content[contract.REQUEST]) | {"upload": 1})


def test_more_steps_than_accepted_reach_no_handler(phantom_64px, tmp_path):
    from client.app import app

    site = hospital_folder(tmp_path / "h", phantom_64px, accept={"max_steps_per_round": 1})
    assert asked(app, centre_message(contract.TRAIN), site).error.code == CODE_AGAINST_POLICY


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("08:00-18:00", ["08:00", "12:30", "17:59"], ["07:59", "18:00", "23:00"]),
        ("20:00-06:00", ["20:00", "23:59", "00:00", "05:59"], ["06:00", "12:00", "19:59"]),
        ("00:00-00:00", ["00:00", "12:00"], []),
    ],
)
def test_working_hours_may_go_over_midnight(hours, inside, outside):
    assert all(is_within(hours, time.fromisoformat(moment)) for moment in inside)
    assert not any(is_within(hours, time.fromisoformat(moment)) for moment in outside)


def test_pause_withdrawal_and_working_hours(tmp_path):
    state, request = SiteState(tmp_path / "s" / "state.sqlite"), _request()
    night = PolicyConfig(working_hours="20:00-06:00")

    def check(policy=None, kind=contract.TRAIN):
        check_available(policy, state, request, kind, NOON)

    check()
    assert _code_of(lambda: check(night))[0] == CODE_LATER
    check(night, contract.DELIVER)
    state.pause()
    assert _code_of(check)[0] == CODE_LATER
    state.withdraw("f" * 16)
    assert _code_of(check)[0] == CODE_LATER  # from another run
    state.withdraw(RUN_ID)
    assert _code_of(check)[0] == CODE_WITHDRAWN
    assert _code_of(lambda: check(kind=contract.DELIVER))[0] == CODE_WITHDRAWN
    state.unpause()
    state.rejoin(RUN_ID)
    check()
    state.withdraw()
    assert _code_of(check)[0] == CODE_WITHDRAWN
    assert set(state.withdrawn_runs()) == {EVERY_RUN, "f" * 16}
    state.rejoin()
    assert state.withdrawn_runs() == {}
