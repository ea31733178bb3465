"""Seconds until a command answers: `--help` of each, and the first line and the end of a dry run.

python benchmarks/commands.py             medians of 5, half a minute
python benchmarks/commands.py --times 1   the embedded scenes are drawn in each dry run, which takes longest
"""

import argparse
import os
import subprocess
import sys
import time
from statistics import median

from rethink_imagenet.tools.options import COMMANDS

CALL = "import sys; from rethink_imagenet.tools.cli import {0}; sys.argv[0] = '{0}'; {0}()"


def answer(name: str, *words: str) -> tuple[float, float]:
    """Seconds until the first line, and until the end."""
    begun = time.perf_counter()
    line = [sys.executable, "-c", CALL.format(name), *words]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None and process.stdout.readline()
        first = time.perf_counter() - begun
        process.stdout.read()
    assert process.returncode == 0, line
    return first, time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="of which the median counts")
    times = parser.parse_args().times
    if hasattr(os, "getloadavg"):
        print(f"load of the machine at the start: {os.getloadavg()[0]:.1f}")
    for name in COMMANDS:
        answer(name, "--help")  # from now on the files are in memory
        print(f"{name} --help: {median(answer(name, '--help')[1] for _ in range(times)):.2f} s", flush=True)
    found = [answer("rethink_train", "--dry-run", "--device", "cpu") for _ in range(times)]
    first, last = (median(values) for values in zip(*found, strict=True))
    print(f"rethink_train --dry-run, embedded scenes: first line {first:.1f} s, all {last:.1f} s")


if __name__ == "__main__":
    main()
