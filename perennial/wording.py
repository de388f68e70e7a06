"""Numbers, names and moments as a sentence has them."""

from __future__ import annotations

from datetime import datetime


def counted(number: int, noun: str) -> str:
    """A number and what it counts: 1 key, 2 keys."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one(name: str) -> str:
    """The name of a kind with its article: an int, a str."""
    return f"{'an' if name[:1] in 'aeioAEIO' else 'a'} {name}"


# Everything that is printed is in UTC.
MOMENT = "%Y-%m-%d %H:%M:%S"


def at(moment: datetime) -> str:
    """A moment, to the second."""
    return f"{moment:{MOMENT}}"
