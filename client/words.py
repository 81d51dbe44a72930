"""How the client calls counts, and the stages of a run, in every sentence it writes."""

from aecnn import contract


def counted(number: int, noun: str) -> str:
    """Gives a number with its noun: 1 image, 2 images."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def stage_of(kind: object, round_: object) -> str:
    """Gives the stage of a run that a message belongs to; both may come from a file that somebody edited.

    A model is judged on its own under the number of the round that would follow, and delivered under that number too.

    Args:
        kind: Message type.
        round_: As the request says it.
    """
    if kind == contract.JOIN:
        return "joining"
    if kind == contract.DELIVER:
        return "delivery"
    if kind == contract.PLACE:
        return "intervals of the released model"
    if kind == contract.EVALUATE and isinstance(round_, int):
        return f"evaluation after round {round_ - 1}" if round_ > 1 else "evaluation before round 1"
    return f"round {round_}"
