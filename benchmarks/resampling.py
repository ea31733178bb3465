"""The interval for a difference in AP, on records of COCO's size: how long it takes, and how often it is right.

python benchmarks/resampling.py               seconds for 5,000 images, 1,000 resamples, 1 + 1 and 5 + 5 runs
python benchmarks/resampling.py --coverage    simulated studies of two arms of 3 runs, with AP itself; half an hour
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.results import keep, row
from rethink_imagenet.evaluation.resampling import Ranking, Records, chance_of, paired_bootstrap, resampled_runs
from rethink_imagenet.evaluation.seeds import Chance, half_width

CLASSES, OBJECTS, LISTED = 80, 7.3, 80  # objects and detections of an image, on average
SEEDS = 0.01  # deviation of a run's quality, about 0.25 AP


class Images:
    """Images with objects of 80 classes, some frequent and some rare, each object and image hard in its own way."""

    def __init__(self, seed: int, number: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self.number = number
        weights = 1 / np.arange(1, CLASSES + 1)
        hard = rng.normal(size=number)
        per_image = rng.poisson(OBJECTS, number)
        self.image = np.repeat(np.arange(number), per_image)
        self.label = rng.choice(CLASSES, len(self.image), p=weights / weights.sum())
        self.hardness = 0.6 * hard[self.image] + 0.8 * rng.normal(size=len(self.image))
        self.of_arm = 0.4 * rng.normal(size=(2, len(self.image)))  # what is hard for one arm and not for the other
        self.false = np.maximum(0, LISTED - OBJECTS) * np.exp(0.3 * hard - 0.045)

    def run(self, seed: int, arm: int, quality: float) -> Records:
        """What a detector of an arm finds: each object up to some IoU, and boxes that are nothing."""
        rng = np.random.default_rng([seed, 1])
        skill = quality - self.hardness - self.of_arm[arm] + 0.6 * rng.normal(size=len(self.image))
        reach = np.clip(np.floor(5.5 + 3.5 * skill), 0, 10).astype(int)
        score = 1 / (1 + np.exp(-(1.2 * skill + 0.8 * rng.normal(size=len(self.image)))))
        where = np.repeat(np.arange(self.number), rng.poisson(self.false))
        what, low = rng.integers(0, CLASSES, len(where)), rng.beta(0.6, 6, len(where))
        images, labels = np.concatenate([self.image, where]), np.concatenate([self.label, what])
        scores, reach = np.concatenate([score, low]), np.concatenate([reach, np.zeros(len(where), int)])
        order, rankings = np.argsort(-scores, kind="stable"), []
        for label in range(CLASSES):
            own = order[labels[order] == label]
            marks = (np.arange(10)[:, None] < reach[own]).astype(np.int8)
            rankings.append(Ranking(images[own], scores[own], marks, self.image[self.label == label]))
        return Records("box", tuple(range(self.number)), np.linspace(0, 1, 101), {"all": tuple(rankings)})


def speed(kept: bool) -> None:
    """Seconds of processor time from records to the interval."""
    images, rows = Images(0, 5000), []
    for number in (1, 5):
        arms = [[images.run(10 * arm + s, arm, 0.02 * arm) for s in range(number)] for arm in range(2)]
        start = time.process_time()
        found = paired_bootstrap(*arms)
        seconds = time.process_time() - start
        detections = sum(len(ranking.images) for ranking in arms[0][0].rankings["all"])
        what = f"interval of {number} + {number} runs, 5,000 images, {detections:,} detections each, 1,000 resamples"
        print(f"{what}: {seconds:.0f} s on one core")
        low, high = found.interval
        print(
            f"AP {found.first:.1f}, {found.second:.1f}, difference {found.difference:+.2f} ({low:+.2f} to {high:+.2f})"
        )
        rows.append(row(what, f"{seconds:.1f} s"))
    if kept:
        keep("resampling", rows)


def study(seed: int, number: int, shift: float, resamples: int) -> tuple[float, Chance]:
    """The difference of two arms of 3 runs on new images, and what is known about the chance in it."""
    images, rng = Images(seed, number), np.random.default_rng([seed, 2])
    runs = [images.run(100 * seed + i, i // 3, shift * (i // 3) + SEEDS * rng.normal()) for i in range(6)]
    ap = resampled_runs(runs, resamples=resamples, seed=seed)
    return float(ap[:3, 0].mean() - ap[3:, 0].mean()), chance_of(ap[:3], ap[3:])


def truth(shift: float) -> float:
    """The difference of the arms on very many images."""
    images = Images(99, 60_000)
    ap = resampled_runs([images.run(7 + arm, arm, shift * arm) for arm in (0, 1)], resamples=2)
    return float(ap[0, 0] - ap[1, 0])


def coverage(studies: int) -> None:
    """How often the interval holds the truth, and how wide it is beside what the difference really varies by."""
    for shift in (0.0, 0.05):
        true = truth(shift) if shift else 0.0
        for number in (200, 1000, 5000):
            count = max(20, min(studies, studies * 500 // number))
            found = [study(seed, number, shift, 200) for seed in range(count)]
            error = np.array([difference for difference, _ in found]) - true
            halves = np.array([float(half_width(chance)) for _, chance in found])
            images = np.mean([float(chance.images) for _, chance in found]) ** 0.5
            print(
                f"{number} images, true difference {true:+.2f}: {100 * np.mean(abs(error) <= halves):.1f} % of {count} "
                f"hold it, deviation {error.std():.3f}, by images {images:.3f}, off by {error.mean():+.3f} on average, "
                f"half width {np.median(halves):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coverage", action="store_true", help="simulate studies in place of measuring the time")
    parser.add_argument("--studies", type=int, default=300, help="at most, of each condition")
    parser.add_argument("--keep", action="store_true", help="the result into benchmarks/results, for the README")
    asked = parser.parse_args()
    if asked.coverage:
        coverage(asked.studies)
    else:
        speed(asked.keep)
