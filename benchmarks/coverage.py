"""How often intervals and forecasts are right, by simulated studies and contests whose truth is known.

python benchmarks/coverage.py                 all parts, ten minutes; the extremes of 351 conditions of 2,000 studies
python benchmarks/coverage.py --write         the same, into benchmarks/coverage.json, which chapters draw
python benchmarks/coverage.py --studies 200   fewer
python benchmarks/coverage.py --only rare     how the interval of AP does where classes have few objects, five minutes
python benchmarks/coverage.py --only unequal  how it does with unequal numbers of runs, half a minute
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from rethink_imagenet.evaluation.forecast import LAWS, made_up_contest, validate_forecast
from rethink_imagenet.evaluation.ladders import Ladder, best_of
from rethink_imagenet.evaluation.resampling import Ranking, Records, ap_by_class, interval_of, resampled_runs
from rethink_imagenet.evaluation.seeds import (
    Conditions,
    first_runs,
    half_width,
    level_at_look,
    rates_of,
    simulate,
)
from rethink_imagenet.randomness import stream

RUNS, IMAGES, TRAINING = (2, 3, 5), (200, 1000, 5000), (0, 0.5, 1, 2, 3, 5)
CORRELATED = ((0.9, 0.4), (0.8, 0.6), (0.7, 0.7))  # images within and between arms
SHARED = (0.0, 0.5)
LOOKS = ((3, 5), (3, 5, 8), (2, 3, 5))
UNEQUAL = ((3, 2), (5, 2), (8, 2), (5, 3))
# classes, those of them with few objects, and how many objects; the others have 50
FEW = [(8, 0, 50), *((8, few, number) for few in (2, 4, 8) for number in (2, 5, 10, 20)), (20, 1, 2)]
SKILLS = ((1.0, 1.0), (0.2, 1.0))  # of the two arms: alike, and far apart


def single(studies: int) -> list[dict[str, Any]]:
    """Coverage, and how often a loss of the margin is missed, for each condition."""
    every = [
        Conditions(runs, images, training, within, between, shared)
        for runs, images, training, (within, between), shared in product(RUNS, IMAGES, TRAINING, CORRELATED, SHARED)
    ]
    few = [one for one in every if one.images == 200 and one.training in (1, 3, 5) and not one.shared]
    every += [replace(one, uneven=10) for one in few]
    return [asdict(one) | asdict(rates_of(simulate(one, studies))) for one in every]


def unequal(studies: int) -> list[dict[str, Any]]:
    """The same rates where the arms have unequal numbers of runs."""
    rows = []
    for (first, second), training, uneven in product(UNEQUAL, (0, 1, 3, 5), (0.1, 1, 10)):
        if training or uneven == 1:
            drawn = simulate(Conditions(first, 200, training, uneven=uneven), studies)
            rates = asdict(rates_of(first_runs(drawn, first, second)))
            rows.append({"runs": (first, second), "training": training, "uneven": uneven} | rates)
    return rows


def made_up_run(rng: np.random.Generator, hardness: np.ndarray, objects: list[np.ndarray], skill: float) -> Records:
    """What a run of a certain skill finds of the objects of each class, the images of which are given."""
    rankings = []
    for images in objects:
        scores = rng.normal(skill - hardness[images])
        found, wrong = scores > 0.3, np.repeat(np.arange(len(hardness)), rng.poisson(1, len(hardness)))
        marks = np.zeros((2, found.sum() + len(wrong)), np.int8)  # at a low and at a high IoU
        marks[0, : found.sum()], marks[1, : found.sum()] = 1, rng.normal(skill, size=found.sum()) > 0.8
        scores = np.concatenate([scores[found], rng.normal(0.4 * hardness[wrong])])
        order = np.argsort(-scores, kind="stable")
        where = np.concatenate([images[found], wrong])
        rankings.append(Ranking(where[order], scores[order], marks[:, order], images))
    return Records("box", tuple(range(len(hardness))), np.linspace(0, 1, 101), {"all": tuple(rankings)})


def made_up_arms(seed: int, numbers: list[int], skills: tuple[float, float], images: int) -> list[Records]:
    """A run of each of two arms, on the same images and so many objects of each class."""
    rng = stream(seed, images)
    hardness, objects = rng.normal(size=images), [rng.integers(images, size=number) for number in numbers]
    return [made_up_run(rng, hardness, objects, skill) for skill in skills]


def true_difference(numbers: list[int], skills: tuple[float, float], images: int) -> float:
    """Between the arms' AP, on 500 times as many images and objects, as the mean of ten classes of each number."""
    if skills[0] == skills[1]:
        return 0.0
    kinds = sorted(set(numbers))
    arms = made_up_arms(0, [500 * one for one in kinds for _ in range(10)], skills, 500 * images)
    found = [ap_by_class(run).mean(axis=1).reshape(len(kinds), 10).mean(axis=1) for run in arms]
    return float(np.mean([(found[0] - found[1])[kinds.index(number)] for number in numbers]))


def rare(studies: int, images: int = 100, common: int = 50) -> list[dict[str, Any]]:
    """Coverage of the interval of AP, and of the one at the best schedule, where some classes have few objects."""
    rows = []
    for skills, (classes, few, number) in product(SKILLS, FEW):
        numbers = [common] * (classes - few) + [number] * few
        true, held = true_difference(numbers, skills, images), np.zeros((studies, 2), bool)
        found = np.zeros(studies)
        for study in range(studies):
            ap = resampled_runs(made_up_arms(1 + study, numbers, skills, images), resamples=200, seed=study)
            found[study] = ap[0, 0] - ap[1, 0]
            ladders = [Ladder((1.0,), (ap[[arm]],)) for arm in (0, 1)]
            best = best_of(ladders[0], ladders[1])
            for i, (low, high) in enumerate((interval_of(ap[:1], ap[1:]), best.interval)):
                held[study, i] = low <= true <= high
        coverage, at_best = held.mean(axis=0).tolist()
        told = {"classes": classes, "few": few, "objects": number, "true": round(true, 1)}
        told["found"] = round(float(found.mean()), 1)
        rows.append(told | {"coverage": coverage, "at_best": at_best})
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


def forecasts(contests: int) -> list[dict[str, Any]]:
    """How often 80 % intervals from the first half of a ladder hold its end, by the law of its curves."""
    rows = []
    for law, runs in product(LAWS, (1, 3)):
        record = validate_forecast([made_up_contest(number, law, runs) for number in range(contests)])
        widths = [one.forecast.interval[1] - one.forecast.interval[0] for one in record.tried]
        rows.append({"law": law, "runs": runs, "held": record.held, "width": float(np.median(widths))})
    return rows


PARTS: dict[str, tuple[Callable[[int], list[dict[str, Any]]], int]] = {  # and so many times fewer studies
    "single": (single, 1), "looks": (looks, 1), "forecasts": (forecasts, 2), "unequal": (unequal, 1), "rare": (rare, 4),
}  # fmt: skip


def main() -> None:
    """Simulate, print the extremes, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="simulated for each condition")
    parser.add_argument("--write", action="store_true", help="into coverage.json beside this script")
    parser.add_argument("--only", choices=list(PARTS), help="this part, with --write beside the others that are there")
    asked = parser.parse_args()
    found = {key: part(max(1, asked.studies // fewer)) for key, (part, fewer) in PARTS.items()
             if asked.only in (None, key)}  # fmt: skip
    for key, extreme in product(("coverage", "missed"), (min, max)):
        for row in [extreme(found["single"], key=itemgetter(key))] if "single" in found else []:
            print(f"{extreme.__name__} of {key}: {100 * row[key]:.2f} %  {row}")
    for row in (row for key, rows in found.items() if key != "single" for row in rows):
        print(row)
    if asked.write:
        path = Path(__file__).with_suffix(".json")
        there = json.loads(path.read_text(encoding="utf-8")) if asked.only else {"studies": asked.studies}
        if there.pop("studies") != asked.studies:
            parser.error(f"{path.name} has other numbers of studies; write all of it")
        found = there | found
        tables = {key: ",\n  ".join(json.dumps(row) for row in rows) for key, rows in found.items()}
        parts = [f' "{key}": [\n  {rows}]' for key, rows in tables.items()]
        text = ",\n".join([f'{{"studies": {asked.studies}', *parts]) + "}\n"
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
