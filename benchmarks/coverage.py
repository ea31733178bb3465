"""How often the interval for images and training is right, by simulated studies whose truth is known.

python benchmarks/coverage.py                 2,000 studies for each of 324 conditions, four minutes; the extremes
python benchmarks/coverage.py --write         the same, into benchmarks/coverage.json, which the chapter on seeds draws
python benchmarks/coverage.py --studies 200   fewer
"""

import argparse
import json
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

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
    rows = []
    for runs, images, training, (within, between), shared in product(RUNS, IMAGES, TRAINING, CORRELATED, SHARED):
        conditions = Conditions(runs, images, training, within, between, shared)
        rows.append(asdict(conditions) | asdict(rates_of(simulate(conditions, studies))))
    return rows


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


def main() -> None:
    """Simulate, print the extremes, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="simulated for each condition")
    parser.add_argument("--write", action="store_true", help="into coverage.json beside this script")
    asked = parser.parse_args()
    found = {"studies": asked.studies, "single": single(asked.studies), "looks": looks(asked.studies)}
    for key in ("coverage", "missed"):
        for extreme in (min, max):
            row = extreme(found["single"], key=lambda one: one[key])
            print(f"{extreme.__name__} of {key}: {100 * row[key]:.2f} %  {row}")
    for row in found["looks"]:
        print(row)
    if asked.write:
        rows = ",\n  ".join(json.dumps(row) for row in found["single"])
        looked = ",\n  ".join(json.dumps(row) for row in found["looks"])
        text = f'{{"studies": {asked.studies},\n "single": [\n  {rows}],\n "looks": [\n  {looked}]}}\n'
        Path(__file__).with_suffix(".json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
