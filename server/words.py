"""How the centre says numbers, times and rounds, at the terminal and in its logs."""

from datetime import datetime


def counted(count: int, noun: str) -> str:
    """Gives a number with its noun, which takes an s where it is not one."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def moment(instant: str) -> str:
    """Gives an ISO 8601 instant on this machine's clock: time and zone, and the day where it is not today."""
    local = datetime.fromisoformat(instant).astimezone()
    day = "" if local.date() == datetime.now(local.tzinfo).date() else f"{local:%Y-%m-%d} "
    return f"{day}{local:%H:%M:%S %Z}"


def round_named(number: int, num_rounds: int | None) -> str:
    """Gives what a question was about: a round, or what follows the last one, where that is known.

    The closing messages carry the number after the last round's.
    """
    return f"evaluation after round {num_rounds}" if num_rounds and number > num_rounds else f"round {number}"
