#!/usr/bin/env bash
# Runs the whole pipeline in one command: set-up, sample scene, training, evaluation, export.
# Prints the paths of the results.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_venv.sh

scene=data/sample
run=runs/sample
# Training takes one to two minutes on two cores without a GPU.
iterations=1000

setup_venv ""
gs_train() { "$PY" -m gs_train "$@"; }

[ -d "$scene/sparse" ] || gs_train sample "$scene"
mkdir -p runs
gs_train train "$scene" --out "$run" --overwrite --iterations "$iterations"
gs_train eval "$run"
gs_train export "$run" "$run.ply"
gs_train export "$run" "$run.html"

picture="$(find "$run/renders" -name '*.png' | sort | sed -n 1p)"
echo
echo "Done. The results:"
echo "  splat    $PWD/$run.ply   (opens in any viewer of 3D Gaussian splats)"
echo "  page     $PWD/$run.html   (shows the splat in any browser)"
echo "  report   $PWD/$run/report.html   (figures, curves, and the held-out views beside their renders)"
echo "  figures  $PWD/$run/results.json"
echo "  picture  $PWD/$picture   (a held-out view: the photo on the left, the render on the right)"
echo
echo "Your own photos or video, from this folder:"
py="$(printf '%q' "$PY")"
if ! "$PY" -c 'import imageio_ffmpeg, pillow_heif, pycolmap' >/dev/null 2>&1; then
    echo "  $py -m pip install -c constraints.txt -e '.[sfm,video,heic]'   # once, for the camera poses"
fi
echo "  $py -m gs_train train PHOTOS_OR_VIDEO --out runs/mine"
