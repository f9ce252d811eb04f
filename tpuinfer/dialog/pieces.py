"""What a reader finds in an answer, in the order in which it was written."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """What the model wrote to itself before it answered."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call begins; its arguments follow.

    Attributes:
      index: 0 for the first call of an answer, and so on.
      id: unique, by which the tool's result names it.
      name: of the tool.
    """

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of the JSON text of a call's arguments; all of a call's joined are one object."""

    index: int
    text: str


Piece = Content | Reasoning | CallStart | CallArguments
"""What a reader gives; those of one kind that follow each other belong together."""


def joined(pieces: list[Piece]) -> list[Piece]:
    """`pieces` with neighbours of one kind as one, and empty ones left out."""
    whole: list[Piece] = []
    for piece in pieces:
        last = whole[-1] if whole else None
        if isinstance(piece, CallStart):
            whole.append(piece)
        elif not piece.text:
            continue
        elif isinstance(piece, Content) and isinstance(last, Content):
            whole[-1] = Content(last.text + piece.text)
        elif isinstance(piece, Reasoning) and isinstance(last, Reasoning):
            whole[-1] = Reasoning(last.text + piece.text)
        elif (
            isinstance(piece, CallArguments)
            and isinstance(last, CallArguments)
            and piece.index == last.index
        ):
            whole[-1] = CallArguments(piece.index, last.text + piece.text)
        else:
            whole.append(piece)
    return whole
