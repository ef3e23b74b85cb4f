#!/usr/bin/env bash
# The whole way in one command: set up, write the sample scene, train it, evaluate it, export it, and say where to look.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_venv.sh

scene=data/sample
run=runs/sample
# One to two minutes on two cores without a GPU.
iterations=1000

setup_venv ""
gs_train() { "$PY" -m gs_train "$@"; }

[ -d "$scene/sparse" ] || gs_train sample "$scene"
mkdir -p runs
gs_train train "$scene" --out "$run" --overwrite --iterations "$iterations"
gs_train eval "$run"
gs_train export "$run" "$run.ply"

picture="$(find "$run/renders" -name '*.png' | sort | sed -n 1p)"
echo
echo "Done. Where to look:"
echo "  splat    $PWD/$run.ply   (any viewer of 3D Gaussian splats opens it)"
echo "  figures  $PWD/$run/results.json"
echo "  picture  $PWD/$picture   (a held-out view: photo on the left, render on the right)"
