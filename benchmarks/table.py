"""The README's table of speed, from the results that benchmarks have left in benchmarks/results.

python benchmarks/table.py                      writes the table into nbs/index.ipynb and README.md
python benchmarks/table.py --run commands data  measures these first; --run alone measures all, about two hours
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.results import FOLDER, row

ROOT = Path(__file__).parent.parent

BEGIN, END = "<!-- speed: python benchmarks/table.py -->", "<!-- end of speed -->"
BENCHMARKS = {  # the lines of the table in order: what is measured, and the words after `python benchmarks/` that do it
    "commands": ("`--help`, dry run", "commands.py --keep"),
    "evaluation-box": ("COCO's figures, boxes", "evaluation.py --keep"),
    "evaluation-mask": ("COCO's figures, masks", "evaluation.py --kind mask --keep"),
    "resampling": ("interval of a comparison", "resampling.py --keep"),
    "reading": ("annotations in COCO's format", "reading.py --keep"),
    "data": ("JPEG to batch", "detector.py data --keep"),
    "demo": ("training step of the embedded demo", "engine.py step --keep"),
    "step": ("training step, R50-FPN GN", "detector.py step --keep"),
    "inference": ("inference, R50-FPN GN", "detector.py inference --keep"),
    "pooling": ("RoIAlign", "detector.py pooling --keep"),
    "memory": ("peak memory of a training step", "detector.py memory --keep"),
    "recomputing": ("recomputing in backward", "detector.py recomputing --keep"),
    "installation": ("installation", "installation.py --keep"),
}


def notes_of(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """For each benchmark the letter of its note; those of one machine, day and way of measuring share one."""
    letters: dict[str, str] = {}
    return {name: letters.setdefault(described(found), chr(ord("a") + len(letters))) for name, found in results.items()}


def described(found: dict[str, Any]) -> str:
    """On what, when and how a benchmark was run, but for the load of the machine."""
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    return f"{found['machine']}, {found['date']}: {found['how']}. {versions}."


def note(found: list[dict[str, Any]]) -> str:
    """What the runs of one letter have in common, and the load of the machine at their ends."""
    loads = [one["load"] for one in found if "load" in one]
    told = f" The load of the machine was {min(loads)} to {max(loads)}." if loads else ""
    return described(found[0]) + told


def table(results: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown; a benchmark without results says so."""
    notes = notes_of(results)
    lines = ["| | ours | the other | ratio | run, rounds |", "|---|---|---|---|---|"]
    for name, (what, _) in BENCHMARKS.items():
        rows = results[name]["rows"] if name in results else [row(what, "not measured")]
        for one in rows:
            cells = [one[key] for key in ("what", "ours", "other", "ratio")]
            run = f"{notes[name]}, {results[name].get('rounds', 1)}" if name in results else ""
            lines.append(f"| {' | '.join([*cells, run])} |")
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, letter in notes.items():
        runs.setdefault(letter, []).append(results[name])
    return "\n".join([*lines, "", *(f"- run {letter}: {note(found)}" for letter, found in runs.items())])


def written(text: str, lines: str) -> str:
    """A text with another table between its two marks."""
    head, _, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    assert end, f"no {BEGIN} ... {END}"
    return f"{head}{BEGIN}\n\n{lines}\n\n{END}{tail}"


def measure(names: list[str]) -> None:
    """Run these benchmarks, one after the other."""
    for name in names:
        script, *words = BENCHMARKS[name][1].split()
        subprocess.run([sys.executable, str(ROOT / "benchmarks" / script), *words], check=True)


def main() -> None:
    """Measure what was asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="*", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    asked = parser.parse_args().run
    measure([] if asked is None else asked or list(BENCHMARKS))
    files = {name: FOLDER / f"{name}.json" for name in BENCHMARKS}
    lines = table({name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.is_file()})
    path = ROOT / "nbs" / "index.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    (cell,) = (cell for cell in notebook["cells"] if BEGIN in "".join(cell["source"]))
    cell["source"] = written("".join(cell["source"]), lines).splitlines(keepends=True)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    subprocess.run([sys.executable, str(ROOT / "scripts" / "make_readme.py")], check=True)
    print(lines)


if __name__ == "__main__":
    main()
