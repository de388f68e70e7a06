from __future__ import annotations

import pytest

from perennial.wording import counted, one


def test_one_thing_is_singular_and_every_other_number_plural() -> None:
    assert [counted(number, "dead letter") for number in (0, 1, 2, 1_204)] == [
        "0 dead letters",
        "1 dead letter",
        "2 dead letters",
        "1,204 dead letters",
    ]


@pytest.mark.parametrize("said", ["an int", "a str", "an object", "a UUID", "a NoneType"])
def test_a_vowel_takes_an(said: str) -> None:
    assert one(said.split()[1]) == said
