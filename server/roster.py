"""Who may take part: the hospitals the centre enrolled, in ``hospitals.json``, and their keys at the SuperLink.

A hospital has one key at a time. A key that was replaced or revoked stays in the file and is never accepted again
(Flower, too, refuses a key that it once unregistered).
"""

import fcntl
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from aecnn.config import HOSPITAL_NAME, validate_config
from aecnn.contract import told
from aecnn.enrolment import FINGERPRINT, EnrolmentRequest, key_fingerprint, whole_file
from aecnn.errors import ConfigError, FederationError
from aecnn.strict_model import StrictModel
from server.run_folder import now_iso

if TYPE_CHECKING:  # Flower takes seconds to import, and most commands do without
    from server.flower import Control

log = logging.getLogger(__name__)


class EnrolledHospital(StrictModel):
    """A hospital as it was enrolled, with the one key that it may use."""

    name: str = Field(pattern=HOSPITAL_NAME)
    public_key: str  # PEM
    num_images: int = Field(ge=1)  # declared: no update may claim more
    num_patients: int = Field(ge=1)
    code_fingerprint: str = Field(pattern=FINGERPRINT)  # at the time
    enrolled_at: str
    revoked_at: str | None = None  # from then on the key is refused

    @property
    def key_fingerprint(self) -> str:
        """In groups of four, as both sides read it out."""
        return key_fingerprint(self.public_key)

    def is_as(self, request: EnrolmentRequest) -> bool:
        """Tells whether a request says nothing new."""
        said = request.model_dump(exclude={"format_version"})
        return self.model_dump(include=set(said)) == said


class Roster(StrictModel):
    """All keys the centre ever accepted, in the order of their enrolment."""

    format_version: Literal[1] = 1
    hospitals: tuple[EnrolledHospital, ...] = ()

    @property
    def enrolled(self) -> dict[str, EnrolledHospital]:
        """Those that may take part now, by name."""
        active = {hospital.name: hospital for hospital in self.hospitals if hospital.revoked_at is None}
        return dict(sorted(active.items()))

    @property
    def newest(self) -> dict[str, EnrolledHospital]:
        """The newest entry of every name, revoked or not."""
        return dict(sorted({hospital.name: hospital for hospital in self.hospitals}.items()))

    def with_request(self, request: EnrolmentRequest, *, replaces: bool) -> "Roster":
        """Enrols a hospital; one that is enrolled already gets its new key or counts where `replaces` is set.

        Raises:
            ConfigError: The name is taken, or the key was used before.
        """
        subject = f"the request of {request.name}"
        for hospital in self.hospitals:
            if hospital.public_key != request.public_key:
                continue
            if hospital.name != request.name:
                raise ConfigError(subject, [f"its key is the one of {hospital.name}: each hospital makes its own"])
            if hospital.revoked_at is not None:
                raise ConfigError(
                    subject, [f"its key was revoked on {hospital.revoked_at}: the hospital must make a new one"]
                )
        current = self.enrolled.get(request.name)
        if current is not None and not replaces:
            raise ConfigError(
                subject,
                [
                    f"{request.name} is enrolled since {current.enrolled_at}, "
                    f"with the key {current.key_fingerprint}. If this is that hospital's new key (it ran aecnn-client "
                    "rotate-key) or new numbers, compare the key and give --replace; if the old key may be in other "
                    f"hands, first cut it off: flower-server revoke {request.name}. Another hospital needs another name"
                ],
            )
        kept = [hospital for hospital in self.hospitals if hospital.public_key != request.public_key]
        kept = [_revoked(hospital) if hospital.name == request.name else hospital for hospital in kept]
        fresh = EnrolledHospital(
            **request.model_dump(exclude={"format_version"}), enrolled_at=now_iso(), revoked_at=None
        )
        return Roster(hospitals=(*kept, fresh))

    def without(self, name: str) -> "Roster":
        """Revokes a hospital.

        Raises:
            ConfigError: No hospital of that name is enrolled.
        """
        if name not in self.enrolled:
            known = ", ".join(self.enrolled) or "none"
            raise ConfigError(f"revoke {name}", [f"no hospital of that name is enrolled; enrolled: {known}"])
        return Roster(
            hospitals=tuple(_revoked(hospital) if hospital.name == name else hospital for hospital in self.hospitals)
        )


def _revoked(hospital: EnrolledHospital) -> EnrolledHospital:
    return hospital if hospital.revoked_at is not None else hospital.model_copy(update={"revoked_at": now_iso()})


def read_roster(path: Path) -> Roster:
    """Reads ``hospitals.json``; an absent file is an empty roster.

    Raises:
        ConfigError: It is damaged.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Roster()
    except (OSError, ValueError) as error:
        raise ConfigError(path, [f"cannot be read ({error}): restore it from a backup"]) from error
    return validate_config(document, Roster, subject=path)


@contextmanager
def changing_roster(path: Path) -> Iterator["RosterChange"]:
    """Reads the roster for a change, and keeps others from changing it meanwhile."""
    with path.with_name(f".{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield RosterChange(path, read_roster(path))


class RosterChange:
    """A roster that may be replaced by another."""

    def __init__(self, path: Path, roster: Roster) -> None:
        self._path, self.roster = path, roster

    def save(self, roster: Roster) -> None:
        """Writes the new roster, whole and on disk."""
        with whole_file(self._path) as partial:
            partial.write_text(roster.model_dump_json(indent=2) + "\n", encoding="utf-8")
        self.roster = roster


def bring_to_link(path: Path, control: "Control") -> Roster:
    """Makes the SuperLink accept the keys that are enrolled now, and no others; gives the roster.

    One process at a time, which reads the roster under its lock: with an older one it would unregister a key that was
    enrolled since, and that is for ever.

    Raises:
        ConfigError: The roster is damaged.
        FederationError: The SuperLink does not answer, or refuses a key.
    """
    with changing_roster(path) as current:
        register_hospitals(control, current.roster)
        return current.roster


def register_hospitals(control: "Control", roster: Roster) -> None:
    """Makes the SuperLink accept a roster's keys and no others, while nobody else does (`bring_to_link`).

    Raises:
        FederationError: The SuperLink does not answer, or refuses a key.
    """
    wanted = {hospital.public_key: hospital.name for hospital in roster.enrolled.values()}
    registered = set()
    for node in control.nodes():
        if wanted.get(node.public_key) == node.name:
            registered.add(node.public_key)
        else:
            log.info("%s's key is unregistered", told(node.name))  # anyone on loopback may have registered it
            control.unregister(node.node_id)
    refused = []
    for public_key, name in wanted.items():
        if public_key not in registered:
            try:
                log.info("%s is registered as node %d", name, control.register(name, public_key))
            except FederationError as error:  # the others are not to wait for it
                refused.append(f"{name}'s key is not registered: {error}")
    if refused:
        raise FederationError("; ".join(refused))
