"""Who is enrolled, and that the SuperLink accepts these and no others."""

import json
import multiprocessing
import threading

import pytest

from aecnn.enrolment import EnrolmentRequest, read_request
from aecnn.errors import ConfigError, FederationError
from centre_in_folder import new_key, public_pem, write_request
from server.flower import LinkError, Node
from server.roster import Roster, bring_to_link, changing_roster, read_roster, register_hospitals


def _request(tmp_path, **fields) -> EnrolmentRequest:
    return read_request(write_request(tmp_path / "request.json", **fields))


class Link:
    """A SuperLink's register that behaves as Flower 1.39: a key once unregistered is refused for ever."""

    def __init__(self):
        self._nodes, self._used = {}, set()

    def nodes(self):  # noqa: D102
        return list(self._nodes.values())

    def register(self, name, public_key):  # noqa: D102
        if public_key in self._used:
            raise LinkError("Public key already in use.")
        self._used.add(public_key)
        node = Node(len(self._used), name, public_key, is_online=False)
        self._nodes[node.node_id] = node
        return node.node_id

    def unregister(self, node_id):  # noqa: D102
        del self._nodes[node_id]

    def names(self):  # noqa: D102
        return sorted(node.name for node in self.nodes())


def test_the_roster_survives_its_file(tmp_path):
    roster = Roster().with_request(_request(tmp_path, name="a"), replaces=False)
    path = tmp_path / "hospitals.json"
    with changing_roster(path) as change:
        assert change.roster == Roster()
        change.save(roster)
    assert read_roster(path) == roster
    assert json.loads(path.read_text(encoding="utf-8"))["format_version"] == 1


def test_a_second_enrolment_needs_replace_and_retires_the_old_key(tmp_path):
    first, second = _request(tmp_path, name="a"), _request(tmp_path, name="a", num_images=500)
    roster = Roster().with_request(first, replaces=False)
    with pytest.raises(ConfigError, match="--replace"):
        roster.with_request(second, replaces=False)
    roster = roster.with_request(second, replaces=True)
    assert roster.enrolled["a"].public_key == second.public_key
    assert roster.enrolled["a"].num_images == 500
    with pytest.raises(ConfigError, match="revoked"):
        roster.with_request(first, replaces=True)


def test_new_numbers_keep_the_key(tmp_path):
    key = public_pem(new_key())
    roster = Roster().with_request(_request(tmp_path, name="a", public_key=key), replaces=False)
    more = _request(tmp_path, name="a", public_key=key, num_images=999)
    roster = roster.with_request(more, replaces=True)
    assert (roster.enrolled["a"].num_images, len(roster.hospitals)) == (999, 1)
    assert roster.enrolled["a"].is_as(more)


def test_two_hospitals_cannot_share_a_key(tmp_path):
    key = public_pem(new_key())
    roster = Roster().with_request(_request(tmp_path, name="a", public_key=key), replaces=False)
    with pytest.raises(ConfigError, match="is the one of a"):
        roster.with_request(_request(tmp_path, name="b", public_key=key), replaces=False)


def test_a_revoked_hospital_comes_back_with_a_new_key_alone(tmp_path):
    request = _request(tmp_path, name="a")
    roster = Roster().with_request(request, replaces=False).without("a")
    assert roster.enrolled == {}
    assert roster.newest["a"].revoked_at is not None
    with pytest.raises(ConfigError, match="enrolled: none"):
        roster.without("a")
    with pytest.raises(ConfigError, match="must make a new one"):
        roster.with_request(request, replaces=False)
    assert "a" in roster.with_request(_request(tmp_path, name="a"), replaces=False).enrolled


def test_the_superlink_accepts_the_enrolled_and_no_others(tmp_path):
    link, roster = Link(), Roster()
    link.register("stranger", public_pem(new_key()))
    for name in ("a", "b", "c"):
        roster = roster.with_request(_request(tmp_path, name=name), replaces=False)
    register_hospitals(link, roster)
    assert link.names() == ["a", "b", "c"]
    known = {node.name: node.node_id for node in link.nodes()}
    roster = roster.without("b").with_request(_request(tmp_path, name="c"), replaces=True)
    register_hospitals(link, roster)
    assert link.names() == ["a", "c"]
    now = {node.name: node.node_id for node in link.nodes()}
    assert now["a"] == known["a"], "who did not change keeps its place"
    assert now["c"] != known["c"]


def test_one_key_that_is_refused_keeps_no_other_out(tmp_path):
    link, request = Link(), _request(tmp_path, name="a")
    link.unregister(link.register("a", request.public_key))
    roster = Roster().with_request(request, replaces=False)
    roster = roster.with_request(_request(tmp_path, name="b"), replaces=False)
    with pytest.raises(FederationError, match="a's key is not registered"):
        register_hospitals(link, roster)
    assert link.names() == ["b"]


@pytest.mark.parametrize("asked_first", [True, False])
def test_an_enrolment_while_another_process_registers_cuts_nobody_off(tmp_path, asked_first):
    """The coordinator has looked at the link, or is about to, when a hospital is enrolled and registered."""
    path, link, both = tmp_path / "hospitals.json", Link(), []
    for name in ("a", "b"):
        both.append(_request(tmp_path, name=name))

    def enrol(request):
        with changing_roster(path) as change:
            change.save(change.roster.with_request(request, replaces=False))
        bring_to_link(path, link)

    class LinkOfTheCoordinator:
        def nodes(self):  # while it looks, the command enrols, and registers as soon as it may
            seen = link.nodes()
            command.start()
            command.join(0.3)
            return seen if asked_first else link.nodes()

        register, unregister = link.register, link.unregister

    command = threading.Thread(target=enrol, args=(both[1],))
    with changing_roster(path) as change:
        change.save(change.roster.with_request(both[0], replaces=False))
    bring_to_link(path, LinkOfTheCoordinator())
    command.join(60)
    assert link.names() == ["a", "b"]


def _enrol_many(path, folder, start):
    for number in range(start, start + 10):
        folder.mkdir(exist_ok=True)
        request = _request(folder, name=f"h{number}")
        with changing_roster(path) as change:
            change.save(change.roster.with_request(request, replaces=False))


def test_enrolments_at_the_same_time_lose_nobody(tmp_path):
    path = tmp_path / "hospitals.json"
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_enrol_many, args=(path, tmp_path / f"w{n}", 10 * n)) for n in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(read_roster(path).enrolled) == 20


def test_a_damaged_file_is_told(tmp_path):
    path = tmp_path / "hospitals.json"
    path.write_text('{"hospitals": [', encoding="utf-8")
    with pytest.raises(ConfigError, match="backup"):
        read_roster(path)
    path.write_text('{"format_version": 2, "hospitals": []}', encoding="utf-8")
    with pytest.raises(ConfigError, match="format_version"):
        read_roster(path)
