"""The runs of a federation folder: which comes next, which goes on, and what is told of each."""

import shutil

import pytest

from aecnn.config import load_config
from centre_in_folder import make_centre
from server.centre_runs import begin_plan, next_run, read_plan, summary_of
from server.centre_view import describe_end
from server.settings import RunSettings, ServerConfig, read_server_config


@pytest.fixture
def paths(tmp_path):
    return make_centre(tmp_path / "centre")


def _end(folder, status="completed"):
    folder.append_event({"event": "end", "status": status, "released_round": 1, "seconds": 1.0, "reason": None})


def test_the_end_of_a_run_names_the_released_round_its_figures_and_the_report(paths):
    config = read_server_config(paths.config)
    begin_plan(paths, num_runs=1, anew=False)
    folder, _ = next_run(paths, config)
    first, second = describe_end(summary_of(folder.path), folder.path)
    assert first == f"{folder.path.name}: unfinished after 0 rounds"
    assert second == f"folder: {folder.path}"
    folder.append_event({"event": "round", "round": 1})
    _end(folder)
    undefined = describe_end(summary_of(folder.path), folder.path)[0]
    assert undefined.endswith("after round 1, macro AUROC undefined (why: model_card.md)")
    folder.append_event({"event": "validation", "round": 1, "macro_auroc": 0.625})
    (folder.path / "report.html").touch()
    assert describe_end(summary_of(folder.path), folder.path) == [
        f"{folder.path.name}: completed after 1 round; released is the model after round 1, "
        "macro AUROC: validation 0.6250",
        f"report: {folder.path / 'report.html'}",
    ]
    (folder.path / "metrics.json").write_text('{"macro_auroc": 0.75}', encoding="utf-8")
    assert "validation 0.6250, test 0.7500" in describe_end(summary_of(folder.path), folder.path)[0]


def test_runs_follow_each_other_with_the_next_seed_until_all_are_done(paths):
    config = read_server_config(paths.config).model_copy(update={"num_runs": 2, "seed": 5})
    begin_plan(paths, num_runs=2, anew=False)
    seeds = []
    while (planned := next_run(paths, config)) is not None:
        folder, own = planned
        seeds.append(RunSettings.of_server(own).seed)
        assert load_config(folder.config_file, ServerConfig) == own
        _end(folder)
    assert seeds == [5, 6]
    assert len(set(read_plan(paths).runs)) == 2
    assert begin_plan(paths, num_runs=2, anew=False).runs == (), "the next start begins anew"


def test_an_unfinished_run_goes_on_as_it_began_but_for_how_long_it_waits(paths):
    config = read_server_config(paths.config)
    begin_plan(paths, num_runs=1, anew=False)
    folder, begun = next_run(paths, config)
    folder.append_event({"event": "start", "run": "test", "started_at": "now", "hospitals": {}})
    changed = config.model_copy(
        update={
            "accepted_fingerprints": ("f" * 64,),
            "seed": 99,
            "federation": config.federation.model_copy(update={"num_rounds": 77, "round_timeout_s": 1.0}),
        }
    )
    assert begin_plan(paths, num_runs=1, anew=False).runs == (folder.path.name,)
    again, goes_on = next_run(paths, changed)
    assert again == folder
    assert (goes_on.seed, goes_on.federation.num_rounds) == (begun.seed, begun.federation.num_rounds)
    assert (goes_on.federation.round_timeout_s, goes_on.accepted_fingerprints) == (1.0, ("f" * 64,))
    begin_plan(paths, num_runs=1, anew=True)
    assert next_run(paths, changed)[0] != folder, "--new leaves it"


def test_a_crash_between_the_plan_and_the_folder_is_made_good(paths):
    config = read_server_config(paths.config)
    begin_plan(paths, num_runs=1, anew=False)
    folder, _ = next_run(paths, config)
    shutil.rmtree(folder.path)
    again, own = next_run(paths, config)
    assert (again, own.seed) == (folder, config.seed)
    assert again.config_file.exists()


def test_a_run_that_nobody_has_joined_yet_takes_a_changed_configuration(paths):
    config = read_server_config(paths.config)
    begin_plan(paths, num_runs=1, anew=False)
    folder, _ = next_run(paths, config)
    changed = config.model_copy(update={"federation": config.federation.model_copy(update={"num_rounds": 77})})
    again, own = next_run(paths, changed)
    assert (again, own.federation.num_rounds) == (folder, 77)
    assert load_config(folder.config_file, ServerConfig).federation.num_rounds == 77


def test_a_run_that_failed_and_goes_on_is_unfinished(paths):
    config = read_server_config(paths.config)
    begin_plan(paths, num_runs=1, anew=False)
    folder, _ = next_run(paths, config)
    for again in ("start", "resume"):
        _end(folder, "failed")
        assert summary_of(folder.path).status == "failed"
        folder.append_event({"event": again, "started_at": "then", "hospitals": {}})
        assert summary_of(folder.path).status == "unfinished"


@pytest.mark.parametrize("status", ["failed", "completed"])
def test_a_run_with_something_left_to_do_goes_on(paths, status):
    config = read_server_config(paths.config)
    begin_plan(paths, num_runs=1, anew=False)
    folder, _ = next_run(paths, config)
    folder.append_event({"event": "start", "run": "t", "started_at": "then", "hospitals": {"a": {}}})
    _end(folder, status)
    folder.store_file.touch()  # rounds to go on from, or a model to deliver
    begin_plan(paths, num_runs=1, anew=False)
    assert next_run(paths, config)[0] == folder
    folder.store_file.unlink()
    begin_plan(paths, num_runs=1, anew=False)
    assert next_run(paths, config)[0] != folder


def test_a_failed_run_is_followed_by_one_with_its_seed(paths):
    config = read_server_config(paths.config)
    begin_plan(paths, num_runs=1, anew=False)
    folder, first = next_run(paths, config)
    _end(folder, "failed")
    begin_plan(paths, num_runs=1, anew=False)
    other, second = next_run(paths, config)
    assert other != folder
    assert second.seed == first.seed
