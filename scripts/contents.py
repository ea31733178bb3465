"""Keep in step what every chapter says about itself, and the table of contents in nbs/index.ipynb.

    python scripts/contents.py                     # writes badges, running times, install cells, table of contents
    python scripts/contents.py --measure           # first measures the chapters that have no time yet
    python scripts/contents.py --measure 30 44     # first measures these chapters
    python scripts/contents.py --measure all       # first measures all of them

In a chapter the cells with the ids "badges" and "install" belong to this command. Times stand in nbs/seconds.json.
"""

import argparse
import configparser
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NBS = ROOT / "nbs"
SECONDS = NBS / "seconds.json"
PARTS = {  # title, and what it is about
    0: ("Begin", "The question, and what every other part uses."),
    1: ("Data", "What a data set holds, how it is read and checked, and how images become batches."),
    2: ("Networks", "Normalization, the bodies of detectors, and the feature pyramid."),
    3: ("Detection", "Boxes, proposals, RoIAlign, the heads, and the detectors that are assembled from them."),
    4: ("Training", "Schedules, checkpoints, the loop, several processes, and several runs."),
    5: ("Evaluation", "Average precision, and what the difference of two detectors is worth."),
    6: ("Study", "Both arms on schedules of several lengths, the verdict, and the recipes of the paper."),
    7: ("Tools", "Pictures, conversion, the commands, and your own data."),
    8: ("Evidence", "A chapter for each claim of the paper: what was run here, and what it shows."),
}
Notebook = dict[str, Any]


def settings() -> dict[str, str]:
    """What settings.ini says."""
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"].items())


def chapters() -> list[Path]:
    """The chapters in order."""
    return sorted(NBS.glob("[0-9][0-9]_*.ipynb"))


def part_of(path: Path) -> int:
    """The number of the part that a chapter belongs to. The evidence goes on with 90."""
    return min(8, int(path.stem[0]))


def read(path: Path) -> Notebook:
    """A notebook."""
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, notebook: Notebook) -> None:
    """Save a notebook in the form that nbdev_clean gives it."""
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if text != path.read_text(encoding="utf-8"):
        path.write_text(text, encoding="utf-8")


def in_words(seconds: float) -> str:
    """A running time, so coarse that a second measurement seldom changes it."""
    if seconds < 5:
        return "a few seconds"
    return f"about {5 * round(seconds / 5)} s" if seconds < 88 else f"about {round(seconds / 60)} min"


def badges(name: str, seconds: float | None, config: dict[str, str]) -> str:
    """Where a chapter can be run at once, and how long it runs."""
    place = f"{config['user']}/{config['repo']}"
    colab = f"https://colab.research.google.com/github/{place}/blob/{config['branch']}/nbs/{name}"
    binder = f"https://mybinder.org/v2/gh/{place}/{config['branch']}?labpath=nbs/{name}"
    lines = [
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})",
        f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})",
    ]
    if seconds is not None:
        lines.append(f"This chapter runs in {in_words(seconds)} on two cores.")
    return "\n".join(lines)


def install(config: dict[str, str]) -> str:
    """The code that a machine without this library needs, such as Colab's. Tests skip it."""
    url, repo = config["git_url"], config["repo"]
    return "\n".join(
        [
            "#| eval: false",
            "# In Colab, run this cell first: it installs the library and changes into the folder of the chapters.",
            "%cd /content",
            f"!test -d {repo} || git clone -q --depth 1 {url}",
            f"!pip install -q './{repo}[imagenet,slurm]'",
            f"%cd {repo}/nbs",
        ]
    )


def cell(kind: str, name: str, text: str) -> dict[str, Any]:
    """A cell of a notebook, with its name as its id."""
    code = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": name, "metadata": {}, "source": text.splitlines(keepends=True)} | code


def with_cells(notebook: Notebook, name: str, seconds: float | None, config: dict[str, str]) -> Notebook:
    """A chapter with its badges and its install cell behind the title, and without older ones."""
    title, *others = [found for found in notebook["cells"] if found.get("id") not in ("badges", "install")]
    ours = [cell("markdown", "badges", badges(name, seconds, config)), cell("code", "install", install(config))]
    return notebook | {"cells": [title, *ours, *others]}


def subtitle(notebook: Notebook) -> str:
    """The line below the title of a chapter."""
    return re.findall(r"(?m)^> (.*)", "".join(notebook["cells"][0]["source"]))[0]


def table(times: dict[str, float]) -> str:
    """The table of contents: the parts, their chapters, and how long each runs."""
    lines = ["| chapter | what it is about | runs in |", "|---|---|---|"]
    part = None
    for path in chapters():
        if (number := part_of(path)) != part:
            part = number
            lines.append(f"| **{PARTS[part][0]}** | | |")
        time = in_words(times[path.name]) if path.name in times else ""
        lines.append(f"| [{path.stem}](nbs/{path.name}) | {subtitle(read(path))} | {time} |")
    return "\n".join(lines)


def with_table(notebook: Notebook, times: dict[str, float]) -> Notebook:
    """The index with the table of contents in the place of the one that it has."""
    found = re.compile(r"(?m)^\| (?:notebook|chapter) \|.*\n(?:\|.*(?:\n|$))+")
    cells, count = [], 0
    for old in notebook["cells"]:
        text = "".join(old["source"])
        if old["cell_type"] == "markdown" and (place := found.search(text)):
            end = "\n" if place[0].endswith("\n") else ""
            text, count = text[: place.start()] + table(times) + end + text[place.end() :], count + 1
            old = old | {"source": text.splitlines(keepends=True)}
        cells.append(old)
    if count != 1:
        sys.exit(f"nbs/index.ipynb: {count} tables of contents, one is needed; its first line is | chapter | ...")
    return notebook | {"cells": cells}


def measured(path: Path) -> float:
    """The processor seconds that a chapter takes under nbdev_test: other programs on the machine do not change them."""
    command = ["nbdev_test", "--path", str(path), "--n_workers", "0"]
    before = os.times()
    if subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode:
        sys.exit(f"nbs/{path.name}: nbdev_test fails, so there is no running time; mend the chapter first")
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def measure(numbers: list[str], times: dict[str, float]) -> None:
    """Measure chapters, those without a time if none is named. A time stays where the new one is about the same."""
    for name in set(times) - {path.name for path in chapters()}:
        del times[name]  # a chapter that is gone
    for path in chapters():
        wanted = path.stem[:2] in numbers or "all" in numbers or (not numbers and path.name not in times)
        if wanted:
            seconds, old = measured(path), times.get(path.name)
            print(f"{path.name}: {seconds:.1f} s of processor time", flush=True)
            if old is None or abs(seconds - old) > max(2.5, 0.25 * old):
                times[path.name] = round(seconds, 1)
                SECONDS.write_text(json.dumps(times, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="*", metavar="NN", help="numbers of chapters, or all")
    arguments = parser.parse_args()
    times: dict[str, float] = json.loads(SECONDS.read_text(encoding="utf-8")) if SECONDS.exists() else {}
    if arguments.measure is not None:
        measure(arguments.measure, times)
    config = settings()
    for path in chapters():
        write(path, with_cells(read(path), path.name, times.get(path.name), config))
    write(NBS / "index.ipynb", with_table(read(NBS / "index.ipynb"), times))


if __name__ == "__main__":
    main()
