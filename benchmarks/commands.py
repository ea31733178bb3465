"""Seconds until a command answers: `--help` of each, and the first line and the end of a dry run.

python benchmarks/commands.py             medians of 5, half a minute
python benchmarks/commands.py --times 1   fewer; the embedded scenes are drawn in each dry run, which takes longest
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.results import keep, row, spent
from rethink_imagenet.tools.options import COMMANDS

CALL = "import sys; from rethink_imagenet.tools.cli import {0}; sys.argv[0] = '{0}'; {0}()"


def spent_by(process: int) -> float:
    """Seconds of processor time that a running process has taken, where the system tells it as Linux does."""
    told = Path(f"/proc/{process}/stat")
    if not told.is_file():
        return float("nan")
    user, system = told.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def answer(name: str, *words: str) -> tuple[float, float, float, float]:
    """Seconds until the first line, and until the end; seconds of processor time until the first line, and in all."""
    begun, busy = time.perf_counter(), spent()
    line = [sys.executable, "-c", CALL.format(name), *words]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None and process.stdout.readline()
        first, busy_first = time.perf_counter() - begun, spent_by(process.pid)
        process.stdout.read()
    assert process.returncode == 0, line
    return first, time.perf_counter() - begun, busy_first, spent() - busy


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="of which the median counts")
    parser.add_argument("--keep", action="store_true", help="the result into benchmarks/results, for the README")
    asked = parser.parse_args()
    times, helps = asked.times, []
    if hasattr(os, "getloadavg"):
        print(f"load of the machine at the start: {os.getloadavg()[0]:.1f}")
    for name in COMMANDS:
        answer(name, "--help")  # from now on the files are in memory
        _, wall, _, busy = (median(v) for v in zip(*(answer(name, "--help") for _ in range(times)), strict=True))
        print(f"{name} --help: {wall:.2f} s, {busy:.2f} s of processor time", flush=True)
        helps.append(busy)
    found = [answer("rethink_train", "--dry-run", "--device", "cpu") for _ in range(times)]
    first, last, busy_first, busy = (median(values) for values in zip(*found, strict=True))
    print(f"rethink_train --dry-run, embedded scenes: first line {first:.1f} s, all {last:.1f} s")
    print(f"of it processor time: first line {busy_first:.1f} s, all {busy:.1f} s")
    if asked.keep:
        lines = [
            row("`--help`, median of all commands, slowest", f"{median(helps):.2f} s, {max(helps):.2f} s"),
            row("`rethink_train --dry-run`, embedded scenes: first line", f"{busy_first:.1f} s"),
            row("`rethink_train --dry-run`, embedded scenes: all", f"{busy:.1f} s"),
        ]
        keep("commands", lines)


if __name__ == "__main__":
    main()
