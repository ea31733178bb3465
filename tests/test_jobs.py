"""Several runs at once: their order, their faults, their ends by signals, a study's figures, clusters, kills."""

import hashlib
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from rethink_imagenet.data.scenes import write_scenes
from rethink_imagenet.data.splits import read_splits
from rethink_imagenet.detection.detectors import DEMO
from rethink_imagenet.errors import InputError
from rethink_imagenet.networks.backbones import Body
from rethink_imagenet.study.plans import Execution, Experiment, Plan
from rethink_imagenet.study.studies import comparison_of, run_study
from rethink_imagenet.tools.commands import foreign_files
from rethink_imagenet.training.checkpoints import checkpoints_of
from rethink_imagenet.training.jobs import Job, Submitted, read_cluster, run_jobs, submit_jobs
from rethink_imagenet.training.logs import JOULES, Interrupted, Interruption, Progress
from rethink_imagenet.training.processes import RunStopped

from .launch import launch
from .soak import differences

ROOT = Path(__file__).parent.parent
COMPARE = Path(sys.executable).parent / "rethink_compare"


# What toy jobs do. They are looked up by their names in the processes that do them.


def note(path: Path, name: str) -> None:
    """Write when a job began and ended, one line each."""
    for word in ("begins", "ends"):
        with path.open("a") as file:
            file.write(f"{name} {word}\n")


def meet(mine: Path, other: Path) -> None:
    """End when the other job has begun, and not before."""
    mine.touch()
    wait_for(other)


def fail(kind: type[Exception], text: str) -> None:
    raise kind(text)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def work_until_asked(path: Path) -> None:
    """Go on until a signal comes, as training does, and leave a file at the end."""
    path.with_suffix(".pid").write_text(str(os.getpid()))
    with Interruption(patient=True) as interruption, Progress(path.name, 1000) as progress:
        path.with_suffix(".begun").touch()
        for iteration in range(1000):
            if interruption.asked:
                path.write_text("saved")
                raise Interrupted(f"stopped after iteration {iteration} of 1000")
            time.sleep(0.05)
            progress.update(iteration + 1, "")


def state_of_process() -> str:
    """What the bits of a job depend on."""
    return f"{torch.get_num_threads()} {torch.are_deterministic_algorithms_enabled()} {os.environ.get('SLOT')}"


def write_state(path: Path) -> None:
    path.write_text(state_of_process())


def is_alive(process: int) -> bool:
    """Whether a process is there, as one that works or as a zombie."""
    return Path(f"/proc/{process}").exists()


def children() -> list[int]:
    """The processes that this one has started and not taken leave of."""
    return [int(child) for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()]


@pytest.fixture
def nobody_left() -> Iterator[None]:
    """Nothing that a test has started is there after it, not even as a zombie."""
    before = children()
    yield
    assert children() == before


def test_the_longest_way_first_and_none_before_what_it_needs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], nobody_left: None
) -> None:
    """One process, so the order is known; lines have the names of their jobs; the last line tells all are done."""
    path = tmp_path / "order"
    jobs = [
        Job("short", partial(note, path, "short"), (), 1.0),
        Job("trunk", partial(note, path, "trunk"), (), 5.0),
        Job("branch", partial(note, path, "branch"), ("trunk",), 2.0),
        Job("said", partial(print, "a line"), ("trunk", "branch"), 0.5),
    ]
    run_jobs(jobs, [{}])
    began = [line.split()[0] for line in path.read_text().splitlines() if line.endswith("begins")]
    assert began == ["trunk", "branch", "short"]
    said = capfd.readouterr()
    assert said.out == "[said] a line\n"
    assert "4 of 4 done, 100 % of the work" in said.err and "Traceback" not in said.err


def test_two_at_once_in_environments_of_their_own(tmp_path: Path, nobody_left: None) -> None:
    """They overlap, or they would wait for good; each has the threads of this process and its own environment."""
    a, b = tmp_path / "a", tmp_path / "b"
    jobs = [Job("a", partial(meet, a, b)), Job("b", partial(meet, b, a))]
    states = [Job(f"state {k}", partial(write_state, tmp_path / str(k)), ("a", "b")) for k in range(2)]
    run_jobs([*jobs, *states], [{"SLOT": "first"}, {"SLOT": "second"}])
    threads, deterministic, _ = state_of_process().split()
    assert {(tmp_path / str(k)).read_text() for k in range(2)} <= {
        f"{threads} {deterministic} {slot}" for slot in ("first", "second")
    }


@pytest.mark.parametrize(
    ("call", "kind", "told", "ways"),
    [
        (partial(fail, InputError, "a.json: no such file"), InputError, "bad: a.json: no such file", []),
        (
            kill_itself,
            RunStopped,
            "bad: its process was ended by SIGKILL",
            ["if memory was short, take fewer --jobs", "go on with --resume"],
        ),
    ],
)
def test_the_first_fault_is_told_and_the_others_save(
    tmp_path: Path, nobody_left: None, call: Callable[[], None], kind: type[Exception], told: str, ways: list[str]
) -> None:
    """Its kind stays; what goes on beside it saves and ends; what comes after it is not begun."""
    after = Job("after", partial(write_state, tmp_path / "after"), ("bad",))
    wait = Job("wait", partial(wait_for, tmp_path / "beside.begun"), (), 9.0)
    beside = Job("beside", partial(work_until_asked, tmp_path / "beside"), (), 8.0)
    bad = Job("bad", call, ("wait",), 1.0)
    with pytest.raises(kind, match=told) as fault:
        run_jobs([wait, beside, bad, after], [{}, {}])
    assert list(cast(Any, fault.value).ways.values()) == ways
    assert (tmp_path / "beside").read_text() == "saved" and not (tmp_path / "after").exists()


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.02)


SCRIPT = """
import sys
from functools import partial
from pathlib import Path
from rethink_imagenet.tools.commands import one_line_faults
from rethink_imagenet.training.jobs import Job, run_jobs
from tests.test_jobs import work_until_asked

root = Path(sys.argv[1])


@one_line_faults
def command():
    run_jobs([Job(name, partial(work_until_asked, root / name)) for name in "ab"], [{}, {}])


command()
"""


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT to all", "SIGKILL"])
def test_a_signal_reaches_all(tmp_path: Path, how: str) -> None:
    """All save and end, with status 75 and one line; also where the one that started them is killed."""
    words, group = [sys.executable, "-c", SCRIPT, str(tmp_path)], how.endswith("all")
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for name in "ab":
        wait_for(tmp_path / f"{name}.begun")
    pids = [int((tmp_path / f"{name}.pid").read_text()) for name in "ab"]
    number = signal.Signals[how.split()[0]]
    os.killpg(process.pid, number) if group else process.send_signal(number)
    _, said = process.communicate(timeout=60)
    end = time.monotonic() + 20
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))
    assert [(tmp_path / name).read_text() for name in "ab"] == ["saved", "saved"]
    if how == "SIGKILL":
        assert process.returncode == -signal.SIGKILL
    else:
        progress = re.compile(r"\d+ of \d+ done, .* left, \d+ at once")  # a slow machine says how far it is
        lines = [line for line in said.strip().splitlines() if not progress.fullmatch(line)]
        assert process.returncode == 75 and len(lines) == 1, said
        assert lines[0].startswith(f"command: stopped by {number.name}; what was finished is kept")


# A study of 2 arms x 2 seeds x 2 schedules


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "body.pth"
    torch.save(Body("resnet10_025").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", train=12, val=3)


PLAN = Plan(DEMO, (2, 3), unit=3, batch=2, short=(64, 64), long=64, evaluations=2)


def study_in(folder: Path, scenes: Path, weights: Path, execution: Execution, seeds: int = 2) -> list[dict[str, Any]]:
    """The results of all runs without their times."""
    torch.set_num_threads(1)
    experiment = Experiment(PLAN, *read_splits(scenes), folder, str(weights), execution)
    found = run_study(comparison_of(experiment, seeds))
    return [{key: value for key, value in run.items() if key not in ("seconds", *JOULES)} for run in found]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, scenes: Path, weights: Path) -> tuple[Path, list[Any]]:
    """Folder and results of the study, one run after the other."""
    folder = tmp_path_factory.mktemp("study")
    return folder, study_in(folder, scenes, weights, Execution(workers=0))


def differing(folder: Path, other: Path) -> dict[str, list[str]]:
    """In what the runs of a study differ from those of another, beside times: weights, momentum, logs."""
    names = sorted(path.parent.name for path in folder.glob("*/results.json"))
    return {name: found for name in names if (found := differences(folder / name, other / name))}


def test_a_study_is_the_same_however_many_go_on_at_once(
    undisturbed: tuple[Path, list[Any]], scenes: Path, weights: Path, tmp_path: Path, nobody_left: None
) -> None:
    """Every figure, every loss, every weight, in the same order; done again, nothing is."""
    execution = Execution(workers=1, jobs=2)
    found = study_in(tmp_path, scenes, weights, execution)
    assert found == undisturbed[1]
    assert differing(tmp_path, undisturbed[0]) == {}
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/results.json")}
    assert study_in(tmp_path, scenes, weights, execution) == found
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/results.json")} == times


def test_a_finished_run_of_another_study_is_refused_before_anything_is_trained(
    undisturbed: tuple[Path, list[Any]], scenes: Path, weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "pretrained-3x").mkdir()
    for name in ("config.json", "results.json"):
        content = json.loads((undisturbed[0] / "pretrained-3x" / name).read_text())
        (tmp_path / "pretrained-3x" / name).write_text(json.dumps(content | {"rate": 0.5}))
    with pytest.raises(InputError, match=r"pretrained-3x/config.json: of a run with other settings \(rate 0.5, now"):
        study_in(tmp_path, scenes, weights, Execution(workers=0, jobs=2))
    assert not list(tmp_path.rglob("*.pt"))


# Clusters

SUBMITIT = pytest.importorskip("submitit", reason="submitit is not installed: pip install .[slurm]")


@pytest.mark.parametrize("cluster", ["debug", "local"])
def test_a_study_on_a_cluster(
    undisturbed: tuple[Path, list[Any]], scenes: Path, weights: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], cluster: str,
) -> None:  # fmt: skip
    """submitit's executors for trials give the same bits; each job is told with its log."""
    found = study_in(tmp_path, scenes, weights, Execution("auto", -1, cluster=f"cluster={cluster}"), seeds=1)
    assert found == undisturbed[1][:4] and differing(tmp_path, undisturbed[0]) == {}
    said = capsys.readouterr()
    assert said.out.count(": job ") == 4 and "4 of 4 done" in said.err
    assert [name for name in foreign_files(tmp_path) if name.startswith("jobs/")] == []


def test_a_job_reads_no_other_file(tmp_path: Path) -> None:
    """What lies under the name of the calls when the job begins is not unpickled unless it is what was handed out."""
    calls, made = tmp_path / "calls.pickle", tmp_path / "made"
    calls.write_bytes(pickle.dumps({"a": partial(made.mkdir)}))
    told = Submitted(calls, "a", "0" * 64)()
    assert isinstance(told, InputError) and "is not the file that was handed out" in str(told) and not made.exists()
    assert Submitted(calls, "a", hashlib.sha256(calls.read_bytes()).hexdigest())() is None and made.is_dir()


def test_faults_on_a_cluster(tmp_path: Path) -> None:
    """A fault keeps its kind; a job that is gone is told with its log."""
    local = read_cluster("cluster=local")
    for call, kind, told in (
        (partial(fail, InputError, "a.json: no such file"), InputError, "^bad: a.json: no such file$"),
        (kill_itself, RunStopped, "bad: job .* ended without a result .*, log "),
    ):
        with pytest.raises(kind, match=told) as fault:
            submit_jobs([Job("bad", call)], local, tmp_path, 0.1)
        assert fault.value.ways == ({"resume": "go on with --resume"} if kind is RunStopped else {})


def be_stopped_once(path: Path) -> None:
    """As a cluster does that wants its machine back."""
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


def time_out_for_good() -> None:
    raise SUBMITIT.core.utils.UncompletedJobError("Job not requeued because: timed-out too many times.")


def test_a_job_that_a_cluster_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is submitted again, and those that need it begin later; one that timed out too often is told in a line."""
    local, order = read_cluster("cluster=local"), tmp_path / "order"
    jobs = [
        Job("stopped", partial(be_stopped_once, tmp_path / "once")),
        Job("next", partial(note, order, "next"), ("stopped",)),
    ]
    submit_jobs(jobs, local, tmp_path / "jobs", 0.1)
    assert order.read_text().split() == ["next", "begins", "next", "ends"]
    said = capsys.readouterr().out
    assert said.count("stopped: was stopped, and is submitted again") == 1 and said.count(": job ") == 3
    with pytest.raises(RunStopped, match=r"^late: Job not requeued because: ") as told:
        submit_jobs([Job("late", time_out_for_good)], local, tmp_path / "jobs", 0.1)
    assert told.value.ways == {"slurm": "give a larger max_num_timeout to --slurm, and go on with --resume"}


SBATCH = """#!/bin/sh
echo "sbatch: error: invalid partition specified: $PARTITION" >&2
exit 1
"""


def test_a_cluster_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes: Path, weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line with the words of sbatch and status 2; the parameters are looked at before anything is made."""
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text(SBATCH)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(InputError, match=r"a: the cluster refuses the job .*invalid partition specified"):
        submit_jobs([Job("a", partial(print))], read_cluster("partition=no"), tmp_path / "jobs", 0.1)
    words = [*words_of(scenes, weights, tmp_path / "out"), "--slurm"]
    for value, told in (("slurm_partition=no", "the cluster refuses"), ("partitoin=no", "partitoin")):
        done = launch([*words, value, "--overwrite"])
        assert done.returncode == 2 and told in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


# What stands for SLURM: a queue that begins each job at once, on this machine.
SLURM = {
    "sbatch": """id=$(($(ls "$QUEUE" | grep -c script) + 1)); cp "$1" "$QUEUE/$id.script"
SLURM_JOB_ID=$id setsid bash -c 'echo $$ >$QUEUE/$SLURM_JOB_ID.pid; bash $QUEUE/$SLURM_JOB_ID.script
    touch $QUEUE/$SLURM_JOB_ID.done' </dev/null >"$QUEUE/$id.out" 2>&1 &
echo "Submitted batch job $id"
""",
    "srun": """while [[ $1 == --* ]]; do case $1 in --output | --error) shift 2 ;; *) shift ;; esac; done
export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1; exec "$@"
""",
    "sacct": """echo "JobID|State|NodeList"; for job in "$QUEUE"/*.script; do id=$(basename "$job" .script)
    [ -e "$QUEUE/$id.done" ] && echo "$id|FAILED|here" || echo "$id|RUNNING|here"; done
""",
    "scancel": """kill -TERM -- "-$(cat "$QUEUE/$1.pid")"
""",
}


def test_jobs_in_the_queue_of_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other where one needs the other; a fault cancels what goes on, which saves."""
    (tmp_path / "queue").mkdir()
    for name, script in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    monkeypatch.setenv("QUEUE", str(tmp_path / "queue"))
    beside, order = tmp_path / "beside", tmp_path / "order"
    jobs = [
        Job("first", partial(note, order, "first")),
        Job("beside", partial(work_until_asked, beside)),
        Job("second", partial(note, order, "second"), ("first",)),
        Job("waits", partial(wait_for, tmp_path / "beside.begun"), ("second",)),
        Job("bad", partial(fail, InputError, "a.json: no such file"), ("waits",)),
    ]
    with pytest.raises(InputError, match=r"^bad: a.json: no such file$"):
        submit_jobs(jobs, read_cluster("partition=small,mem=4GB,max_num_timeout=7"), tmp_path / "jobs", 0.1)
    assert order.read_text().split() == ["first", "begins", "first", "ends", "second", "begins", "second", "ends"]
    wait_for(beside)
    script = (tmp_path / "queue" / "1.script").read_text()
    (submitted, *_) = (tmp_path / "jobs").glob("1_submitted.pkl")
    assert SUBMITIT.core.utils.DelayedSubmission.load(submitted)._timeout_countdown == 7
    assert "--partition=small" in script and "--mem=4GB" in script and "--time=1440" in script


# Kills


def words_of(scenes: Path, weights: Path, out: Path, unit: int = 6, seeds: int = 2) -> list[str]:
    """The command of a study of 2 arms x some seeds x 2 schedules, and where it is a long one x 2 amounts of data."""
    words: list[object] = [COMPARE, "--data", scenes, "--model", "demo", "--weights", weights, "--out", out]
    words += ["--short", 64, "--long", 64, "--batch", 2, "--workers", 1, "--unit", unit, "--save-every", 2]
    words += ["--subsets", 6] if unit > 6 else []
    return [str(word) for word in (*words, "--seeds", seeds, "--schedules", "2,3", "--device", "cpu")]


def progress_of(folder: Path) -> int:
    """How many checkpoints and results there are or were, to see that something has happened."""
    return sum(int(path.name.split("-")[0]) for run in folder.glob("*") for path in checkpoints_of(run)[-1:])


def kill_once(words: list[str], out: Path, rng: random.Random) -> bool:
    """Start the study, kill its whole process group at a random moment; False if it had ended by then."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    before, early = progress_of(out), rng.random() < 0.2  # some are killed while they start
    while not early and process.poll() is None and progress_of(out) == before:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 8) if early else rng.uniform(0, 1.5))
    went_on = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return went_on


def killed(scenes: Path, weights: Path, root: Path, kills: int, seeds: int = 2) -> list[str]:
    """Carry out the study undisturbed, one run after the other, and killed so many times with --jobs 2."""
    unit, rng = max(6, 3 * kills), random.Random(0)
    straight, out = root / "straight", root / "killed"
    os.environ |= {"OMP_NUM_THREADS": "1"}
    launch([*words_of(scenes, weights, straight, unit, seeds), "--jobs", "1"]).check_returncode()
    words = [*words_of(scenes, weights, out, unit, seeds), "--jobs", "2", "--resume"]
    count = 0
    while count < kills and kill_once(words, out, rng):
        count += 1
        finished = len(list(out.glob("*/results.json")))
        print(f"killed {count} times: {finished} runs finished, {progress_of(out)} iterations in checkpoints")
    if count < kills:
        return [f"ended after {count} kills of {kills}; give it more iterations"]
    launch(words).check_returncode()
    found = [f"{name}: {', '.join(told)}" for name, told in differing(out, straight).items()]
    results = [json.loads((folder / "results.json").read_text()) for folder in (straight, out)]
    for each in results:
        for key in ("command", "costs"):
            del each[key]
        for run in each["runs"]:
            for key in ("seconds", *JOULES):
                run.pop(key, None)
    return found + [key for key in results[0] if results[0][key] != results[1][key]]


def test_a_kill(scenes: Path, weights: Path, tmp_path: Path) -> None:
    """Killed at a random moment with two runs going on, a study ends with every figure of an undisturbed one."""
    assert killed(scenes, weights, tmp_path, kills=1, seeds=1) == []


@pytest.mark.slow
def test_twenty_kills(scenes: Path, weights: Path, tmp_path: Path) -> None:
    assert killed(scenes, weights, tmp_path, kills=20) == []


def test_not_beside_torchrun(scenes: Path, weights: Path, tmp_path: Path) -> None:
    """Runs at once, and processes that share each run, do not go together; nor do wrong numbers."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*words_of(scenes, weights, tmp_path / "out"), "--jobs"]
    for start, value, told in ((torchrun, "2", "take torchrun or these"), ([], "-1", "--jobs -1: takes a number")):
        done = subprocess.run([*start, *words, value], capture_output=True, text=True, check=False, timeout=120)
        lines = [line for line in done.stderr.splitlines() if line.startswith("rethink_compare:")]
        assert done.returncode and len(lines) == 1 and told in lines[0], done.stderr
    assert not (tmp_path / "out").exists()
