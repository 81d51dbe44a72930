"""`flower-server start` with its real processes: what it does when they, or it, are killed, stopped or fail."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from centre_in_folder import eventually, flower_server, make_centre, started, write_request
from server.centre import read_json
from server.centre_runs import read_plan, summary_of
from server.settings import read_server_config

pytestmark = [
    pytest.mark.flower,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="children end with their parent on Linux"),
]


def _waits_for_hospitals(paths, process, *, not_pid=None):
    """The children's process ids, once the coordinator waits for hospitals; `not_pid`: as another than that one."""

    def reached():
        assert process.poll() is None, (paths.folder / "start.log").read_text()
        pids, now = read_json(paths.processes), read_json(paths.status)
        pid = pids.get("coordinator")
        is_waiting = pid not in (None, not_pid) and _is_alive(pid) and now.get("deadline_at") is not None
        return pids if is_waiting and now["phase"] == "joining" else None

    return eventually(reached, what="the coordinator's waiting for hospitals", timeout_s=240)


def _is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _flower_runs(paths):
    """How many times a run was begun at the SuperLink."""
    return (paths.logs / "superlink.log").read_text(errors="replace").count("Created run ")


def test_a_federation_that_runs_can_be_changed_and_heals_itself_until_it_is_stopped(tmp_path):
    paths = make_centre(tmp_path / "fed", join_timeout_s=3600.0)
    request = write_request(tmp_path / "r.json", name="st-anna")
    with started(paths) as process:
        children = _waits_for_hospitals(paths, process)
        document = json.loads(flower_server("status", "--json", "-f", paths.folder)[0])
        assert document["processes"] == {"start": process.pid, **children}
        assert document["now"]["phase"] == "joining"

        assert "from now on" in flower_server("enroll", "st-anna", request, "--yes", "-f", paths.folder)[1]
        [row] = json.loads(flower_server("hospitals", "--json", "-f", paths.folder)[0])["hospitals"]
        assert (row["name"], row["is_enrolled"], row["is_online"]) == ("st-anna", True, False)
        assert "from now on" in flower_server("revoke", "st-anna", "-f", paths.folder)[1]
        log = (paths.logs / "superlink.log").read_text(errors="replace")
        assert "UnregisterNode" in log

        assert str(process.pid) in flower_server("start", "-f", paths.folder, code=1)[1], "one start a folder"

        paths.status.unlink()
        os.kill(children["coordinator"], signal.SIGKILL)
        healed = _waits_for_hospitals(paths, process, not_pid=children["coordinator"])
        assert healed["superlink"] == children["superlink"], "what was not killed went on"
        assert _flower_runs(paths) == 2

        os.kill(healed["superlink"], signal.SIGKILL)
        eventually(lambda: read_json(paths.processes).get("superlink") not in (None, healed["superlink"]))
        other = write_request(tmp_path / "r2.json", name="st-bert")
        eventually(
            lambda: (
                "from now on" in flower_server("enroll", "st-bert", other, "--yes", "-f", paths.folder, code=None)[1]
            )
        )
        assert len(read_plan(paths).runs) == 1

        children = read_json(paths.processes)
        begin = time.monotonic()
        flower_server("stop", "-f", paths.folder)
        assert process.wait(timeout=30) == 0, "a stop that was asked for is no failure"
        assert time.monotonic() - begin < 20
        assert not any(_is_alive(pid) for pid in children.values() if pid)
    assert "stopped" in (paths.folder / "start.log").read_text()


def test_kill_9_of_the_whole_centre_leaves_nothing_behind_and_the_next_start_goes_on(tmp_path):
    paths = make_centre(tmp_path / "fed", join_timeout_s=3600.0)
    with started(paths) as process:
        children = _waits_for_hospitals(paths, process)
        process.kill()
        process.wait()
        with started(paths) as second:  # at once: it waits until the ports are free
            _waits_for_hospitals(paths, second, not_pid=children["coordinator"])
            assert not any(_is_alive(pid) for pid in children.values())
            second.send_signal(signal.SIGINT)
            assert second.wait(timeout=30) == 0
    [run] = read_plan(paths).runs
    assert [path.name for path in paths.runs.iterdir()] == [run]


def test_a_run_that_nobody_joins_fails_with_the_reason_and_is_told_as_failed(tmp_path):
    paths = make_centre(tmp_path / "fed", join_timeout_s=2.0)
    _, told = flower_server("start", "-f", paths.folder, code=1, timeout=240)
    assert "hospital" in told.split("error:")[1]
    assert "--new" in told
    [name] = read_plan(paths).runs
    summary = summary_of(paths.runs / name)
    assert (summary.status, summary.rounds_done) == ("failed", 0)
    assert summary.reason.split()[0] in told.split("error:")[1]
    [run] = json.loads(flower_server("runs", "--json", "-f", paths.folder)[0])["runs"]
    assert run["status"] == "failed"
    assert "failed" in flower_server("status", "-f", paths.folder)[0]
    assert read_server_config(paths.runs / name / "config.yaml").federation.join_timeout_s == 2.0
    assert Path(flower_server("report", "-f", paths.folder)[0].strip()).is_file()
