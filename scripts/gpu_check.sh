#!/usr/bin/env bash
# Checks and measures a machine with an NVIDIA GPU and a CUDA toolkit in less than eight minutes, and writes the figures as JSON.
#
#   bash scripts/gpu_check.sh                     compile gsplat, test, profile a step, train the sample scene
#   bash scripts/gpu_check.sh SCENE               train SCENE, a COLMAP scene folder, instead
#   bash scripts/gpu_check.sh --only profile      one piece: compile, tests, profile or runs; repeat --only for several
#   bash scripts/gpu_check.sh --help              all flags
#
# If the first Python on the PATH (or $PYTHON) has the packages, it is used. Otherwise they are installed into .venv.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

PY="${PYTHON:-python3}"
if ! "$PY" -c 'import gsplat, numba, plyfile, scipy, torch, tyro' >/dev/null 2>&1; then
    if ! nvidia-smi -L >/dev/null 2>&1; then
        echo "error: gpu_check.sh needs an NVIDIA GPU, and nvidia-smi finds none: install the driver, or run it on a machine with one." >&2
        exit 2
    fi
    source "$here/scripts/setup_venv.sh"
    setup_venv dev
fi
exec "$PY" "$here/scripts/gpu_check.py" "$@"
