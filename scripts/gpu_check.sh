#!/usr/bin/env bash
# Checks a machine with an NVIDIA GPU and a CUDA toolkit: compiles gsplat's kernels, compares the CPU kernels with them,
# and trains a scene on CUDA. Prints figures. If a requirement is missing, the script names it and stops.
#
#   bash scripts/gpu_check.sh [SCENE]     SCENE is a COLMAP scene folder. Without it the script writes the sample scene.
set -euo pipefail
scene="${1:-}"
if [ -n "$scene" ]; then
    scene="$(cd "$scene" && pwd)" || exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_venv.sh

iterations=2000
run=runs/gpu_check
mkdir -p runs

setup_venv dev

echo "== gsplat's kernels"
"$PY" - <<'PYTHON'
import sys
import time

import torch

from gs_train.errors import UserError
from gs_train.render.gsplat_cuda import kernels_built
from gs_train.render.select import select_rasterizer

already = kernels_built() if torch.cuda.is_available() else False
start = time.perf_counter()
try:
    selection = select_rasterizer("cuda", lambda line: print(line, flush=True))
except UserError as error:
    sys.exit(f"error: {error}")
took = time.perf_counter() - start
print(selection.reason)
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
print(f"kernels {'loaded' if already else 'compiled and loaded'} in {took:.1f} s")
PYTHON

echo "== tests on CUDA"
"$PY" -m pytest -m cuda

if [ -z "$scene" ]; then
    scene=data/sample
    [ -d "$scene/sparse" ] || "$PY" -m gs_train sample "$scene"
fi

echo "== training $scene for $iterations iterations on CUDA"
start=$SECONDS
"$PY" -m gs_train train "$scene" --out "$run" --overwrite --iterations "$iterations" --device cuda
train_s=$((SECONDS - start))
"$PY" -m gs_train eval "$run"

echo "== figures"
echo "training, whole process: $train_s s"
"$PY" - "$run/results.json" <<'PYTHON'
import json
import sys

for name, value in json.load(open(sys.argv[1])).items():
    print(f"{name}: {value}")
PYTHON
