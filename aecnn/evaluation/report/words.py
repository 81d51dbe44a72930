"""How the report writes numbers, dates and names; what is undefined is a dash."""

from collections.abc import Sequence
from datetime import UTC, datetime

ABSENT = "–"
DEEPEST_PERCENT = 52  # of the accent in a cell: text stays readable on it
SMALLEST_BOUND = 0.001
LOWEST_BAR = 0.4  # left end of the AUROC bars; a lower AUROC ends there


def score(value: float | None) -> str:
    """Gives three decimals."""
    return ABSENT if value is None else f"{value:.3f}"


def count(value: int | None) -> str:
    """Gives a whole number, thousands apart."""
    return ABSENT if value is None else f"{value:,}"


def share(value: float | None) -> str:
    """Gives a fraction in per cent."""
    return ABSENT if value is None else f"{100 * value:.1f} %"


def interval(ends: tuple[float, float] | None) -> str:
    """Gives both ends of an interval to three decimals."""
    return ABSENT if ends is None else f"{ends[0]:.3f}–{ends[1]:.3f}"


def percent(value: float) -> str:
    """Gives a round share in per cent, without decimals it does not need."""
    return f"{100 * value:.4g} %"


def short(value: float | None) -> str:
    """Gives two decimals, for narrow columns."""
    return ABSENT if value is None else f"{value:.2f}"


def bound(value: float) -> str:
    """Gives what a figure can be off by, as what follows ``by``: to three decimals, or less than the last of them."""
    return f"up to {value:.3f}" if value >= SMALLEST_BOUND else f"less than {SMALLEST_BOUND}"


def heat(value: float) -> str:
    """Gives how deep the colour of an AUROC's cell is, as a CSS length: none at chance."""
    return f"{min(abs(value - 0.5), 0.5) * 2 * DEEPEST_PERCENT:.0f}%"


def bar(value: float) -> str:
    """Gives the place of an AUROC on the bars' scale, as a CSS length."""
    return f"{100 * min(max((value - LOWEST_BAR) / (1.0 - LOWEST_BAR), 0.0), 1.0):.2f}%"


def duration(seconds: float | None) -> str:
    """Gives a time in the two units that matter."""
    if seconds is None:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def date(text: str | None) -> str:
    """Gives an ISO 8601 instant in words; other text as it is."""
    try:
        instant = datetime.fromisoformat(text or "")
    except ValueError:
        return text or ABSENT
    zone = ""
    if instant.tzinfo is not None:
        instant, zone = instant.astimezone(UTC), " UTC"
    return f"{instant.day} {instant:%B %Y, %H:%M}{zone}"


def size(num_bytes: int) -> str:
    """Gives a file's size in the unit that fits."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    return f"{num_bytes / 1e3:.1f} kB" if num_bytes < 1e6 else f"{num_bytes / 1e6:.1f} MB"


def spaced(name: str) -> str:
    """Gives a finding's name without underscores."""
    return name.replace("_", " ")


def round_named(number: int, num_rounds: int | None) -> str:
    """Gives a round by its number, and what follows the last one in words, where that is known."""
    return f"the evaluation after round {num_rounds}" if num_rounds and number > num_rounds else f"round {number}"


def epsilon(value: float | None) -> str:
    """Gives a privacy loss to two decimals; None is beyond any promise."""
    return "beyond any promise" if value is None else f"{value:.2f}"


def significant(value: float | None) -> str:
    """Gives a number to four significant digits."""
    return ABSENT if value is None else f"{value:.4g}"


def resumptions(rounds: Sequence[int]) -> str:
    """Says after which finished rounds a run was resumed, as the end of a sentence."""
    *others, last = [str(number) for number in rounds]
    numbers = f"{', '.join(others)} and {last}" if others else last
    return f"interrupted, resumed after round{'s' if others else ''} {numbers}"
