"""The hospitals of a run: what each declared, and whether it still takes part."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from aecnn.contract import HospitalCounts


@dataclass(frozen=True)
class Enrolled:
    """What a hospital declared when it was enrolled: no answer of it may claim more."""

    num_images: int
    num_patients: int
    fingerprint: str  # of the code it had then


# Gives the enrolled hospitals by name, those alone that are not revoked; asked again and again, so read anew each time.
EnrolledHospitals = Callable[[], Mapping[str, Enrolled]]


@dataclass(frozen=True)
class Member:
    """A hospital that joined: what it declared, why its last update was refused, why it left."""

    counts: HospitalCounts
    last_refusal: int = 0  # the contract's code of why its last update was not averaged; 0: it was, or there is none
    left: str | None = None  # the reason; None: it takes part


Members = dict[str, Member]  # by hospital


def present(members: Mapping[str, Member]) -> list[str]:
    """Gives the names of those who take part, in order."""
    return sorted(name for name, member in members.items() if member.left is None)


def with_refusals(members: Mapping[str, Member], refused: Mapping[str, int], admitted: set[str]) -> Members:
    """Gives the members with what each is to be told, with the next request, of its last update."""
    return {
        name: replace(member, last_refusal=refused.get(name) or (0 if name in admitted else member.last_refusal))
        for name, member in members.items()
    }
