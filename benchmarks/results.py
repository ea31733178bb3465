"""Results of benchmarks as small files in benchmarks/results, which benchmarks/table.py puts into the README."""

import argparse
import datetime
import json
import os
import platform
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
PROCESSOR = "processor time (user and system, children included), the contenders taking turns in one run"
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "msgspec", "pycocotools", "faster-coco-eval")


def spent() -> float:
    """Seconds of processor time that this process has taken, and its children that have ended."""
    return sum(os.times()[:4])


def processor() -> str:
    """The name of the processor, and how many cores there are."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    return f"{found[1] if found else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def row(what: str, ours: str, other: str = "", ratio: float | str = "") -> dict[str, str]:
    """A line of the table; a ratio above 1 is in our favour."""
    return {"what": what, "ours": ours, "other": other, "ratio": ratio if isinstance(ratio, str) else f"{ratio:.2f}"}


def asked(about: str | None, parts: Iterable[str]) -> tuple[list[str], bool]:
    """The parts of a benchmark that the command line names, all by default, and whether their results are kept."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    if parts := list(parts):
        parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; all by default")
    parser.add_argument("--keep", action="store_true", help="the result into benchmarks/results, for the README")
    given = parser.parse_args()
    named = getattr(given, "parts", [])
    for name in named:
        if name not in parts:
            parser.error(f'"{name}" is no part of it; there are {", ".join(parts)}')
    return named or parts, given.keep


def keep(name: str, rows: list[dict[str, str]], how: str = PROCESSOR, rounds: int = 1) -> None:
    """Write the lines of a benchmark with machine, date, load, versions, how time was taken, and of how many rounds."""
    content: dict[str, Any] = {"machine": processor(), "system": platform.system(), "date": str(datetime.date.today())}
    if hasattr(os, "getloadavg"):
        content["load"] = round(os.getloadavg()[0], 1)
    content["versions"] = {"python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES}
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(content | {"how": how, "rounds": rounds, "rows": rows}, indent=1, ensure_ascii=False)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
