"""What a recipe's run takes before its first iteration, beyond reading the annotations.

python benchmarks/startup.py                 the largest recipe and the first of Table 1, each in a process of its own
python benchmarks/startup.py RECIPE...       others, of those from scratch
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPES = ("table3/x152-gn-cascade-aug-tta-scratch-9x", "table1/r50-gn-scratch-6x")


def measure(name: str, folder: Path) -> dict[str, tuple[float, float]]:
    """Seconds, and seconds of processor time, of each step but reading the annotations."""
    seconds, start = {}, (time.perf_counter(), time.process_time())

    def lap(step: str) -> None:
        nonlocal start
        now = time.perf_counter(), time.process_time()
        seconds[step], start = (now[0] - start[0], now[1] - start[1]), now

    from rethink_imagenet.data.coco import read_coco
    from rethink_imagenet.detection.detectors import build, check_from_scratch
    from rethink_imagenet.randomness import seed_everything
    from rethink_imagenet.study.plans import Execution
    from rethink_imagenet.study.recipes import pixels_as, plan_for, recipe_named
    from rethink_imagenet.training.checkpoints import code_digest
    from rethink_imagenet.training.loop import optimizer_of

    lap("import")
    train_set = read_coco(folder / "annotations" / "instances_train.json")
    lap("read")
    plan = pixels_as(plan_for(recipe_named(name), train_set))
    for n in plan.schedules:
        plan.run_settings(n, Execution())
    code_digest("comparison")
    lap("plan")
    seed_everything(plan.seed)
    model = build(plan.detector)
    lap("build")
    check_from_scratch(model)
    lap("check")
    optimizer_of(model, settings=plan.updates)
    lap("optimizer")
    del seconds["read"]
    return seconds


def main() -> None:
    """Measure each in a process of its own, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"{', '.join(RECIPES)} by default")
    names = parser.parse_args().recipes or RECIPES
    from rethink_imagenet.data.scenes import write_scenes

    with tempfile.TemporaryDirectory() as folder:
        scenes = write_scenes(Path(folder) / "scenes", train=8, val=2)
        for name in names:
            subprocess.run([sys.executable, __file__, "--in", str(scenes), name], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in"]:
        found = measure(sys.argv[3], Path(sys.argv[2]))
        steps = ", ".join(f"{step} {wall:.2f}" for step, (wall, _) in found.items())
        total, busy = (sum(values) for values in zip(*found.values(), strict=True))
        print(f"{sys.argv[3]}: {total:.1f} s, {busy:.1f} s of processor time ({steps})", flush=True)
    else:
        main()
