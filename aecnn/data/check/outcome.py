"""What one check of a dataset found: pass, warn or fail, with the reason and the suspects."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_PICTURES = 24  # suspects of one check shown in the report; all are listed

Status = Literal["pass", "warn", "fail"]
_SEVERITY: dict[Status, int] = {"pass": 0, "warn": 1, "fail": 2}


class Suspect(BaseModel):
    """One image that a person should look at.

    Attributes:
        image: Its name in the table.
        patient: Whose it is.
        sentence: What was found, and what to do.
        sureness: How sure the check is, from 0 to 1; None where it is certain.
        picture: The image in small, as PNG, for the report; not in the JSON.
    """

    model_config = ConfigDict(frozen=True)

    image: str
    patient: str
    sentence: str
    sureness: float | None = None
    picture: bytes | None = Field(default=None, exclude=True, repr=False)


class Outcome(BaseModel):
    """The outcome of one check.

    Attributes:
        check: Its name, for scripts.
        title: Its name, for people.
        status: ``pass``, ``warn`` (look at it) or ``fail`` (mend it before joining).
        summary: One sentence.
        details: One sentence for each thing found.
        suspects: Images to look at.
    """

    model_config = ConfigDict(frozen=True)

    check: str
    title: str
    status: Status
    summary: str
    details: tuple[str, ...] = ()
    suspects: tuple[Suspect, ...] = ()


def worst(outcomes: Sequence[Outcome]) -> Status:
    """Gives the most severe status, ``pass`` where there is none."""
    return max((outcome.status for outcome in outcomes), key=_SEVERITY.__getitem__, default="pass")


def outcome_of_faults(check: str, title: str, faults: Sequence[str], *, if_none: str) -> Outcome:
    """Gives a check that fails where there are faults."""
    count = "1 fault" if len(faults) == 1 else f"{len(faults):,} faults"
    return Outcome(
        check=check,
        title=title,
        status="fail" if faults else "pass",
        summary=f"{count}: mend them before joining" if faults else if_none,
        details=tuple(faults),
    )
