"""The README's table of speed is what benchmarks/table.py makes of the results that benchmarks have left."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, results, table
from rethink_imagenet.detection.detectors import DEMO, build

ROOT = Path(__file__).parent.parent


def kept() -> dict[str, dict]:
    files = {name: results.FOLDER / f"{name}.json" for name in table.BENCHMARKS}
    return {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.is_file()}


def test_the_readme_has_the_table_of_the_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert table.written(text, table.table(kept())) == text


def test_every_result_is_a_line_of_the_table_and_tells_its_machine_and_day() -> None:
    assert {file.stem for file in results.FOLDER.glob("*.json")} <= set(table.BENCHMARKS)
    for found in kept().values():
        assert found["machine"] and found["date"] and found["versions"] and found["how"]
        assert all(set(line) == {"what", "ours", "other", "ratio"} for line in found["rows"])


def test_a_benchmark_without_results_says_so() -> None:
    lines = table.table({}).splitlines()[2:]
    assert len([line for line in lines if "not measured" in line]) == len(table.BENCHMARKS)


def test_runs_of_one_kind_share_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    results.keep("demo", [results.row("a step", "1 s", "2 s", 2.0)])
    results.keep("data", [results.row("a batch", "3 s")], rounds=4)
    found = {name: json.loads((tmp_path / f"results/{name}.json").read_text("utf-8")) for name in ("demo", "data")}
    found["demo"]["load"], found["data"]["load"] = 0.5, 1.5
    lines = table.table(found | {"step": found["demo"] | {"date": "2026-01-01"}})
    assert "| a step | 1 s | 2 s | 2.00 | a, 1 |" in lines
    assert "| a batch | 3 s |  |  | a, 4 |" in lines
    assert "- run b: " in lines and "- run c: " not in lines
    assert "The load of the machine was 0.5 to 1.5." in lines


def test_parts_are_named_or_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (([], (["a", "b"], False)), (["b", "--keep"], (["b"], True))):
        monkeypatch.setattr("sys.argv", ["some.py", *words])
        assert results.asked("What it measures.", ("a", "b")) == expected
    for word, told, status in (("c", '"c" is no part of it; there are a, b', 2), ("--help", "What it measures.", 0)):
        monkeypatch.setattr("sys.argv", ["some.py", word])
        with pytest.raises(SystemExit) as left:
            results.asked("What it measures.", ("a", "b"))
        assert left.value.code == status and told in "".join(capsys.readouterr())


def test_every_benchmark_has_a_help() -> None:
    scripts = [path.read_text("utf-8") for path in (ROOT / "benchmarks").glob("*.py")]
    assert all("argparse" in text or "asked(__doc__" in text for text in scripts if "__main__" in text)


def test_each_script_of_the_table_exists() -> None:
    for _, words in table.BENCHMARKS.values():
        assert (ROOT / "benchmarks" / words.split()[0]).is_file()


def test_contiguous_images_make_contiguous_maps() -> None:
    """The weights alone do not: the maps of images in channels_last order are in that order."""
    model = build(DEMO).to(memory_format=torch.contiguous_format)
    assert not model.features([torch.rand(3, 64, 96)])[0][0].is_contiguous()
    with gpu.contiguous_images():
        assert all(level.is_contiguous() for level in model.features([torch.rand(3, 64, 96)])[0])
    assert not model.features([torch.rand(3, 64, 96)])[0][0].is_contiguous()


SCRIPT = ROOT / "scripts/gpu.sh"


@pytest.mark.parametrize(("tests", "benchmark", "expected"), [(0, 0, 0), (1, 0, 1), (0, 3, 3), (0, 124, 0), (5, 3, 5)])
def test_the_gpus_script_ends_with_what_went_wrong(tests: int, benchmark: int, expected: int, tmp_path: Path) -> None:
    """A fault of the tests, then one of the benchmark; a benchmark whose time is over is none."""
    programs = {"python": "exit 0", "nvidia-smi": "echo a card",
                "timeout": f'[ "$2" = pytest ] && exit {tests}; exit {benchmark}'}  # fmt: skip
    for name, does in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    text = SCRIPT.read_text("utf-8").split("\n")
    script = "\n".join(line for line in text if not line.startswith("source "))
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "OUT": str(tmp_path / "out")}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, check=False)
    assert done.returncode == expected, done.stderr
