"""Saying no: the centre gets a code and its fixed text, the reason stays at the hospital."""

from flwr.app import Error, Message

from aecnn.contract import CODE_TEXT
from aecnn.errors import AecnnError


class RefusalError(AecnnError):
    """A request that is not answered.

    Args:
        code: One of `aecnn.contract.CODE_TEXT`, all that leaves.
        reason: For the hospital's own log.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def refusal(code: int, message: Message) -> Message:
    """Gives the reply that refuses a message with a code."""
    return Message(Error(code, CODE_TEXT[code]), reply_to=message)
