"""What all tests share: the sample data beside the project, and that where they are nothing is skipped."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def sample_data() -> Callable[[str], Path]:
    """A sample data set by name; skips the test where the folder of samples is absent."""

    def find(name: str) -> Path:
        folder = DATA / name
        if not folder.is_dir():
            pytest.skip(f"the sample data {folder} are not there")
        return folder

    return find


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run one of the console commands as a user would, in a folder of its own."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        script = Path(sys.executable).parent / name
        words = [str(script), *map(str, arguments)]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False)

    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> object:
    """With NO_SKIPS set, a skipped test has failed."""
    report = yield
    if report.skipped and os.environ.get("NO_SKIPS") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped though NO_SKIPS is set: {report.longrepr}"
    return report
