"""The evidence: what is registered can be read, what was run is whole, and today's code still gives its numbers."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from rethink_imagenet.study.plans import Execution
from rethink_imagenet.study.studies import computing_with
from rethink_imagenet.tools.experiments import Workplace, read_experiment, runs_asked_for, spot_check
from rethink_imagenet.training.checkpoints import environment

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(path.parent for path in ROOT.glob("experiments/*/experiment.toml"))


def beginnings() -> list[tuple[Path, str]]:
    """The runs on scenes that began from nothing but a seed, or from a classifier: trunks of all experiments."""
    found = []
    for folder in EXPERIMENTS:
        experiment = read_experiment(folder)
        drawn = {system.name for system in experiment.design.systems if system.scenes}
        for name, content in experiment.runs.items():
            run = content["run"]
            from_nothing = run["losses"][0][0] <= 20 and run["arm"] == "scratch"
            if from_nothing and len(drawn) == len(experiment.design.systems):
                found.append((folder, name))
    return found


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_an_experiment_is_whole(folder: Path) -> None:
    found = read_experiment(folder)
    assert found.design.claim and found.design.refuted
    assert len(found.runs) <= runs_asked_for(found.design)
    if found.results:
        assert len(found.runs) == runs_asked_for(found.design)
    for name, content in found.runs.items():
        iterations = [loss[0] for loss in content["run"]["losses"]]
        assert iterations == sorted(set(iterations)) and iterations[-1] == content["run"]["iterations"], name
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 3_000_000


def compared(folder: Path, name: str, work: Path) -> tuple[Any, Any, bool]:
    """The first losses as they were kept and as they are today, and whether the machine is of the same kind."""
    found = read_experiment(folder)
    content = found.runs[name]
    with computing_with(threads=1):
        kept, today = spot_check(found.design, Workplace(work, Path("nowhere"), Execution(workers=0)), content)
        return kept, today, content["versions"] == environment()


def test_two_runs_begin_today_as_they_did(tmp_path: Path) -> None:
    """Which two, the date decides: in time each run gets its turn."""
    runs = beginnings()
    for i in range(min(2, len(runs))):
        folder, name = runs[(2 * date.today().toordinal() + i) % len(runs)]
        kept, today, same = compared(folder, name, tmp_path / str(i))
        assert kept, name
        assert today == kept if same else today == [pytest.approx(loss, rel=1e-3) for loss in kept], name
