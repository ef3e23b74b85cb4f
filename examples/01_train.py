"""Train a scene from Python, and print the progress.

    gs-train sample data/sample
    python examples/01_train.py data/sample runs/example

Evaluate the run with `gs-train eval runs/example`.
"""

import sys
from dataclasses import replace
from pathlib import Path

from gs_train import TrainState, load_preset, load_scene, train


def report(state: TrainState) -> None:
    if state.iteration % 50 == 0:
        print(f"iteration {state.iteration}: {len(state.model):,} Gaussians, PSNR {state.smoothed['psnr']:.2f} dB")


def main(scene_path: str, out: str, iterations: str = "300") -> None:
    scene = load_scene(scene_path)
    config = replace(load_preset("fast"), iterations=int(iterations))
    state = train(scene, config, Path(out), after_step=[report], notify=print)
    print(f"{len(state.model):,} Gaussians after {state.iteration} iterations: {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
