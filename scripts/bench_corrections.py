"""Measures exposure correction and pose refinement on a scene with synthetic errors, and on one without errors.

    python scripts/bench_corrections.py [--iterations 1500] [--preset default] [--seeds 0 1]

Trains the sample scene in three versions: unchanged; with every photo brightened or darkened by up to 30 %; with
every training camera turned by 0.5 degrees and moved by 1 % of the extent (root mean square), in random directions
whose mean over the cameras is zero. Test photos have the same exposure errors (the metrics match colours first), test
cameras have no errors. Prints a Markdown table of means over the seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from gs_train.cameras.poses import camera_centre, pose_at
from gs_train.config.settings import TrainConfig
from gs_train.config.toml import load_preset
from gs_train.evaluate.evaluate import evaluate_refined, evaluate_splat
from gs_train.evaluate.metrics import ViewMetrics
from gs_train.run.open import open_splat
from gs_train.sample.scene import write_sample_scene
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.types import Scene, View
from gs_train.training.loop import train

GAIN, ANGLE_DEG, SHIFT = 0.3, 0.5, 0.01
ROWS = (
    "as it is",
    "as it is, --exposure affine",
    "as it is, --refine-poses",
    "gains",
    "gains, --exposure affine",
    "wrong poses",
    "wrong poses, --refine-poses",
)


def with_gains(scene: Scene, folder: Path, seed: int) -> Scene:
    """A copy of the scene whose photos are multiplied by factors from 0.7 to 1.3, written to ``folder``."""
    random = np.random.default_rng(seed)

    def spoil(view: View) -> View:
        pixels = np.asarray(Image.open(view.image_path).convert("RGB"), np.float64) * random.uniform(1 - GAIN, 1 + GAIN)
        path = folder / f"{Path(view.name).stem}.png"
        Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8)).save(path)
        return replace(view, image_path=path)

    folder.mkdir()
    return replace(
        scene, train_views=tuple(map(spoil, scene.train_views)), test_views=tuple(map(spoil, scene.test_views))
    )


def with_wrong_poses(scene: Scene, seed: int) -> Scene:
    """A copy of the scene whose training cameras are turned about their centres and moved."""
    random = np.random.default_rng(seed)

    def directions() -> np.ndarray:
        # A common change of all cameras only moves the world frame; no photo shows it, so the mean is removed.
        vectors = random.normal(size=(len(scene.train_views), 3))
        vectors -= vectors.mean(axis=0)
        return vectors / np.sqrt((vectors**2).sum(axis=1).mean())

    def spoil(view: View, turn: np.ndarray, shift: np.ndarray) -> View:
        pose = view.world_to_camera
        rotation = pose[:3, :3] @ Rotation.from_rotvec(np.radians(ANGLE_DEG) * turn).as_matrix()
        centre = camera_centre(pose) + SHIFT * scene.extent * shift
        return replace(view, world_to_camera=pose_at(centre, rotation))

    return replace(scene, train_views=tuple(map(spoil, scene.train_views, directions(), directions())))


def measure(scene: Scene, config: TrainConfig) -> tuple[ViewMetrics, ViewMetrics]:
    """Train, then return the mean metrics of the test views, at their own poses and at poses refined on the photos."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train(scene, config, run)
        opened = open_splat(run)
        selection = opened.select_rasterizer()
        views = opened.frame.apply(scene).test_views
        return evaluate_splat(opened, views, selection).mean, evaluate_refined(opened, views, selection).mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=1500, help="of each training")
    parser.add_argument("--preset", default="default", help="settings to start from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds to train with")
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS, metavar="ROW", help="rows of the table")
    arguments = parser.parse_args()
    rows: dict[str, list[tuple[ViewMetrics, ViewMetrics]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_sample_scene(Path(folder) / "scene")
        clean = load_scene(Path(folder) / "scene", SceneConfig())
        for seed in arguments.seeds:
            scenes = {"as it is": clean, "wrong poses": with_wrong_poses(clean, seed)}
            scenes["gains"] = with_gains(clean, Path(folder) / f"gains{seed}", seed)
            plain = replace(load_preset(arguments.preset), iterations=arguments.iterations, seed=seed)
            configs = {"": plain, "--exposure affine": replace(plain, exposure="affine")}
            configs["--refine-poses"] = replace(plain, refine_poses=True)
            for row in arguments.rows:
                name, _, flag = row.partition(", ")
                rows.setdefault(row, []).append(measure(scenes[name], configs[flag]))
    message = f"{arguments.preset}, {arguments.iterations} iterations, seeds {', '.join(map(str, arguments.seeds))}"
    print(f"\nSample scene, {message}, test views:\n")
    print("| scene | PSNR, dB | colour matched, dB | SSIM | refined on the photo, dB |\n|---|---|---|---|---|")
    for row, each in rows.items():
        psnr, matched, ssim = (
            float(np.mean([getattr(own, key) for own, _ in each])) for key in ("psnr", "psnr_colour_matched", "ssim")
        )
        refined = float(np.mean([on_photo.psnr for _, on_photo in each]))
        print(f"| {row} | {psnr:.2f} | {matched:.2f} | {ssim:.4f} | {refined:.2f} |")


if __name__ == "__main__":
    main()
