"""What people install and what they find in the repository: packages that run, files that can be read, one version."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from rethink_imagenet import __version__
from rethink_imagenet.tools.options import COMMANDS

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def ran(*words: object, cwd: Path, **environment: str) -> str:
    """What a process says; it must succeed."""
    given = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    done = subprocess.run([*map(str, words)], cwd=cwd, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist of what git tracks, and the wheel that is built from the sdist; without network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("packages")
    listed = ran("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, listed):
        if not name.startswith("nbs/") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    ran(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, cwd=out)
    return {"sdist": next(out.glob("*.tar.gz")), "wheel": next(out.glob("*.whl"))}


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_a_package_runs_from_an_empty_folder(packages: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Installed without dependencies beside those that are there: its own modules answer, and its scripts exist."""
    target, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    words = "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"
    ran(sys.executable, "-m", "pip", *words, "--target", target, packages[kind], cwd=empty)
    said = ran(sys.executable, "-m", "rethink_imagenet", "--version", cwd=empty, PYTHONPATH=str(target))
    assert said.strip() == f"rethink_imagenet {__version__}"
    code = (
        "import rethink_imagenet, rethink_imagenet.data.scenes as one; print(rethink_imagenet.__file__, one.__file__)"
    )
    told = ran(sys.executable, "-c", code, cwd=empty, PYTHONPATH=str(target)).split()
    assert len(told) == 2 and all(Path(file).is_relative_to(target) for file in told)
    scripts = {
        path.stem
        for path in next(path for path in target.iterdir() if path.name.lower() in ("bin", "scripts")).iterdir()
    }
    assert set(COMMANDS) <= scripts
    assert {"__init__.pyi", "py.typed"} <= {path.name for path in (target / "rethink_imagenet").iterdir()}
    modules = {path.relative_to(ROOT) for path in (ROOT / "rethink_imagenet").rglob("*.py")}
    assert not [path for path in modules if not (target / path).is_file()]


def test_the_sdist_has_its_licence_and_no_part_of_the_tests(packages: dict[str, Path]) -> None:
    """The tests need files that stand beside them, so they come with the repository or not at all."""
    with tarfile.open(packages["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "settings.ini"} <= names
    assert not [name for name in names if name.startswith("tests")]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_installed(name: str) -> None:
    assert f"{name}=rethink_imagenet.tools.cli:{name}\n" in (ROOT / "settings.ini").read_text(encoding="utf-8")


def test_one_version_everywhere() -> None:
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert f"\nversion = {__version__}\n" in settings and citation["version"] == __version__
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert {"cff-version", "message", "title", "authors", "references"} <= citation.keys()
    assert "\ngit_url = https://github.com/%(user)s/%(repo)s\n" in settings
    assert citation["repository-code"].endswith("/rethink-imagenet/rethink_imagenet")


def steps_of(workflow: Path) -> list[dict[str, Any]]:
    """All steps of all jobs."""
    return [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_there_is(workflow: Path) -> None:
    steps = steps_of(workflow)
    assert all(("run" in step) != ("uses" in step) for step in steps)
    commands = "\n".join(step.get("run", "") for step in steps)
    for name in re.findall(r"(?:scripts|tests)/[\w/]+\.\w+", commands):
        assert (ROOT / name).is_file(), name
    versions = re.findall(r'"(3\.\d+)"', workflow.read_text())
    assert versions and "python_requires" in (ROOT / "setup.py").read_text()
    assert "min_python = 3.11\n" in (ROOT / "settings.ini").read_text()
    assert min(tuple(map(int, version.split("."))) for version in versions) >= (3, 11)


def test_the_tests_run_on_all_three_systems() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    assert {job["runs-on"].partition("-")[0] for job in jobs.values()} == {"ubuntu", "macos", "windows"}
    assert jobs["all"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    tried = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for job in (job for job in jobs.values() if job.get("continue-on-error")):
        assert f"| {job['name'].partition(',')[0]} | never tried" in tried


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_can_be_shown(form: Path) -> None:
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    if form.stem == "config":
        assert content == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= content.keys()
    ids = [part["id"] for part in content["body"]]
    assert len(ids) == len(set(ids)) and all(part["attributes"]["label"] for part in content["body"])


def test_the_hooks_are_tools_that_are_installed() -> None:
    """Each begins with a tool of the development environment, or with one of the scripts."""
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        tool, *words = hook["entry"].split()
        assert shutil.which(tool, path=str(Path(sys.executable).parent)), tool
        assert all((ROOT / word).is_file() for word in words if word.endswith(".py"))
        assert re.compile(hook.get("files", ""))
    entries = [hook["entry"] for hook in repository["hooks"]]
    assert {"nbdev_clean", "nbdev_export"} <= set(entries) and any(entry.startswith("ruff") for entry in entries)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_what_a_page_names_exists(name: str) -> None:
    """Its commands, and the files that it names."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for command in re.findall(r"rethink_[a-z]+\b", text):
        assert command in COMMANDS or command == "rethink_imagenet", command
    for path in re.findall(r"(?:nbs|tests|scripts)/[\w/]+\.\w+", text):
        assert (ROOT / path).is_file(), path
