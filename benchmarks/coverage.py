"""How often intervals and forecasts are right, by simulated studies and contests whose truth is known.

python benchmarks/coverage.py                 2,000 studies for each of 351 conditions, six minutes; the extremes
python benchmarks/coverage.py --write         the same, into benchmarks/coverage.json, which chapters draw
python benchmarks/coverage.py --studies 200   fewer
"""

import argparse
import json
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from rethink_imagenet.evaluation.forecast import LAWS, made_up_contest, validate_forecast
from rethink_imagenet.evaluation.seeds import (
    Conditions,
    first_runs,
    half_width,
    level_at_look,
    rates_of,
    simulate,
)

RUNS, IMAGES, TRAINING = (2, 3, 5), (200, 1000, 5000), (0, 0.5, 1, 2, 3, 5)
CORRELATED = ((0.9, 0.4), (0.8, 0.6), (0.7, 0.7))  # images within and between arms
SHARED = (0.0, 0.5)
LOOKS = ((3, 5), (3, 5, 8), (2, 3, 5))


def single(studies: int) -> list[dict[str, Any]]:
    """Coverage, and how often a loss of the margin is missed, for each condition."""
    every = [
        Conditions(runs, images, training, within, between, shared)
        for runs, images, training, (within, between), shared in product(RUNS, IMAGES, TRAINING, CORRELATED, SHARED)
    ]
    few = [one for one in every if one.images == 200 and one.training in (1, 3, 5) and not one.shared]
    every += [replace(one, uneven=10) for one in few]
    return [asdict(one) | asdict(rates_of(simulate(one, studies))) for one in every]


def looks(studies: int) -> list[dict[str, Any]]:
    """How often a loss of the margin is missed at any of several looks, with a level per look and without."""
    rows = []
    for numbers, training in product(LOOKS, (0, 1, 3, 5)):
        every = simulate(replace(Conditions(), runs=max(numbers), images=500, training=training), studies)
        missed = np.zeros((2, studies), bool)
        for look, runs in enumerate(numbers, 1):
            known = first_runs(every, runs)
            error = known.first.mean(axis=-1) - known.second.mean(axis=-1)
            for i, level in enumerate((level_at_look(look), 0.95)):
                missed[i] |= error > half_width(known, level)
        guarded, unguarded = missed.mean(axis=1).tolist()
        rows.append({"looks": numbers, "training": training, "missed": guarded, "unguarded": unguarded})
    return rows


def forecasts(contests: int) -> list[dict[str, Any]]:
    """How often 80 % intervals from the first half of a ladder hold its end, by the law of its curves."""
    rows = []
    for law, runs in product(LAWS, (1, 3)):
        record = validate_forecast([made_up_contest(number, law, runs) for number in range(contests)])
        widths = [one.forecast.interval[1] - one.forecast.interval[0] for one in record.tried]
        rows.append({"law": law, "runs": runs, "held": record.held, "width": float(np.median(widths))})
    return rows


def main() -> None:
    """Simulate, print the extremes, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="simulated for each condition")
    parser.add_argument("--write", action="store_true", help="into coverage.json beside this script")
    asked = parser.parse_args()
    found = {"single": single(asked.studies), "looks": looks(asked.studies), "forecasts": forecasts(asked.studies // 2)}
    for key in ("coverage", "missed"):
        for extreme in (min, max):
            row = extreme(found["single"], key=lambda one: one[key])
            print(f"{extreme.__name__} of {key}: {100 * row[key]:.2f} %  {row}")
    for row in [*found["looks"], *found["forecasts"]]:
        print(row)
    if asked.write:
        tables = {key: ",\n  ".join(json.dumps(row) for row in rows) for key, rows in found.items()}
        parts = [f' "{key}": [\n  {rows}]' for key, rows in tables.items()]
        text = ",\n".join([f'{{"studies": {asked.studies}', *parts]) + "}\n"
        Path(__file__).with_suffix(".json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
