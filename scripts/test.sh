#!/usr/bin/env bash
# All tests: notebooks clean and exported, badges and table of contents right, README made from its notebook, lint and types, notebooks run, pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

before=$(git status --porcelain 2>/dev/null || true)
python scripts/contents.py
nbdev_clean
find rethink_imagenet -name '*.py' ! -name '__init__.py' ! -name '__main__.py' -delete
nbdev_export
python scripts/make_readme.py
if [ "$(git status --porcelain 2>/dev/null || true)" != "$before" ]; then
    git status --porcelain >&2
    git diff --stat >&2
    echo "not in step: notebooks not clean or without what scripts/contents.py writes, the library not what they export, or README.md not index.ipynb" >&2
    exit 1
fi
ruff check .
ruff format --check .
mypy
export OMP_NUM_THREADS=1  # two at a time are faster than two threads for one
nbdev_test --n_workers 2 --timing
pytest --numprocesses 3 --dist worksteal "$@"  # three on two cores, since one of them often waits
