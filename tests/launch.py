"""Commands as processes of their own, forked from one that has imported PyTorch already.

Importing takes a command four seconds, and most commands of the tests take less than one to do their work. What a
command is given (words, folder, environment, two files) and what it leaves (files, words, exit status) is the same as
from a shell. That the installed scripts begin from nothing is tested in `test_package.py`, and wherever a test kills or
stops processes, or has torchrun start them.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_FORKS = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows, where each command imports anew
_START = multiprocessing.get_context("forkserver" if _FORKS else "spawn")
if _FORKS:
    _START.set_forkserver_preload(["rethink_imagenet.tools.commands", "rethink_imagenet.tools.cli", __name__])


def _carry_out(words: Sequence[str], cwd: str, environment: Mapping[str, str], said: tuple[str, str]) -> None:
    """In the new process: what the installed script does."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(said, start=1):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = list(words)
    import torch

    from rethink_imagenet.tools import cli

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))  # as at its import
    sys.exit(getattr(cli, Path(words[0]).name)())


class Started:
    """A command that runs."""

    def __init__(self, words: Sequence[object], cwd: Path | None = None, environment: Mapping[str, str] = os.environ):
        self.words = [str(word) for word in words]
        self.folder = tempfile.TemporaryDirectory()
        self.said = (f"{self.folder.name}/stdout", f"{self.folder.name}/stderr")
        given: tuple[Any, ...] = (self.words, str(cwd or Path.cwd()), dict(environment), self.said)
        self.process: Any = _START.Process(target=_carry_out, args=given)
        self.process.start()

    def ended(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Wait for its end; one that takes longer is killed, and raises TimeoutExpired."""
        with self.folder:
            self.process.join(timeout)
            if self.process.exitcode is None:
                self.process.kill()
                self.process.join()
                raise subprocess.TimeoutExpired(self.words, timeout)
            texts = [Path(path).read_text() if Path(path).exists() else "" for path in self.said]
            return subprocess.CompletedProcess(self.words, self.process.exitcode, *texts)


def launch(
    words: Sequence[object], cwd: Path | None = None, timeout: float = 1800, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """Run a command of ours and wait for its end."""
    return Started(words, cwd, environment).ended(timeout)
