#!/usr/bin/env bash
# On a machine with a GPU, in at most eight minutes: its tests, then its benchmark. Output goes to $OUT, by default gpu/.
set -uo pipefail
OUT=${OUT:+$(realpath -m "$OUT")}  # seen from where the script was called
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "PyTorch finds no GPU here" >&2; exit 2; }
OUT=${OUT:-gpu}
mkdir -p "$OUT"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$OUT/card.txt"
timeout 270 pytest -m gpu -p no:cacheprovider tests/test_gpu.py 2>&1 | tee "$OUT/tests.txt"
status=${PIPESTATUS[0]}
timeout 190 python benchmarks/gpu.py --seconds 160 --json "$OUT/benchmark.json" 2>&1 | tee "$OUT/benchmark.txt"
measured=${PIPESTATUS[0]}
[ "$measured" = 124 ] && measured=0  # its time was over, and the rows until then are kept
exit "$((status ? status : measured))"
