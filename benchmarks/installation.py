"""What an installation from nothing takes: seconds, and GB on the disk, in an environment of its own.

python benchmarks/installation.py          into a temporary folder, which takes minutes and 6 GB
python benchmarks/installation.py --keep   and the result into benchmarks/results
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.results import asked, keep, row, spent

ROOT = Path(__file__).parent.parent
HOW = "wall time with all packages downloaded, processor time beside it; sizes by `du`"


def timed(words: list[str]) -> tuple[float, float]:
    """Seconds, and seconds of processor time, of a command."""
    start, begun = time.perf_counter(), spent()
    subprocess.run(words, check=True)
    return time.perf_counter() - start, spent() - begun


def size(folder: Path) -> float:
    """GB that a folder takes on the disk."""
    told = subprocess.run(["du", "-sk", str(folder)], capture_output=True, text=True, check=True).stdout
    return int(told.split()[0]) / 2**20


def main() -> None:
    """Measure the library alone, and then what the scripts install in addition."""
    (_, kept), rows = asked(__doc__, ()), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "environment"
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-cache-dir"]
        kinds = {"`pip install .`": [str(ROOT)], "with the tools of the two scripts": ["-e", f"{ROOT}[dev]"]}
        wall = processor = 0.0
        for what, words in kinds.items():
            seconds, busy = timed([*install, *words])
            wall, processor = wall + seconds, processor + busy
            rows.append(
                row(f"installation, {what}", f"{wall:.0f} s, {processor:.0f} s of processor, {size(folder):.1f} GB")
            )
            print(rows[-1], flush=True)
    if kept:
        keep("installation", rows, HOW)


if __name__ == "__main__":
    main()
