"""Strangers' files: each mutation is used to its end or refused in one line; no traceback, no hang, bounded memory."""

from collections import Counter

import pytest

from tests.fuzz import KINDS, cases_of, fuzz, table


def faults_of(number: int, seed: int) -> list[str]:
    """What is neither; the table is printed."""
    outcomes = fuzz(cases_of(number), seed, workers=2, say=print)
    print(table(outcomes))
    assert {kind for kind, _ in outcomes} == set(KINDS) and len(outcomes) == number
    told = Counter(kind for (kind, _), result in outcomes.items() if result == "used")
    assert set(told) == set(KINDS) and told.total() > number / 10  # they are not refused for a fault of the test itself
    return [f"{kind}:{case} {result}" for (kind, case), result in outcomes.items() if result not in ("used", "refused")]


def test_some_mutations() -> None:
    """A part of what the slow test tries, some seconds of it."""
    assert not faults_of(160, seed=1)


@pytest.mark.slow
def test_ten_thousand_mutations() -> None:
    """Some minutes on two cores."""
    assert not faults_of(10_000, seed=0)
