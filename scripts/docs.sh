#!/usr/bin/env bash
# The site, from the notebooks: into _docs/html. With numbers, such as 30 31, those chapters only.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
if [ "$(cat .venv/stamp-docs 2>/dev/null)" != "$stamp" ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[docs]' >&2
    echo "$stamp" > .venv/stamp-docs
fi
exec python scripts/make_site.py "$@"
