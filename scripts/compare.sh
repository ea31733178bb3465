#!/usr/bin/env bash
# The main job: does pre-training help? On the embedded scenes, or on your own data with --data.
set -euo pipefail
here=$PWD  # files that are named lie here
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
cd "$here"
exec rethink_compare "$@"
