"""Measures the benefit of masks: each training photo of the sample scene shows a disc, masked or not.

    python scripts/bench_masks.py OUT [-- FLAGS OF gs-train train]

The disc moves from photo to photo. The test photos show no disc, so a ghost of it lowers their PSNR. Training takes
600 iterations of the preset fast unless the flags change that. Writes the scenes and the runs to OUT, a new folder,
and prints a Markdown table.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from gs_train.commands.train import TrainCommand
from gs_train.evaluate.evaluate import evaluate_splat
from gs_train.evaluate.metrics import ViewMetrics
from gs_train.flags import parse
from gs_train.run.open import open_splat
from gs_train.sample.scene import write_sample_scene
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.training.loop import train

COLOUR = (235, 30, 190)


def write_scene(folder: Path) -> None:
    """Write the sample scene with a disc in every training photo, and a mask over the disc."""
    write_sample_scene(folder, views=40, width=160, height=120, points=3000)
    rng = np.random.default_rng(0)
    for view in load_scene(folder, SceneConfig()).train_views:
        photo = np.array(Image.open(view.image_path).convert("RGB"))
        rows, columns = np.ogrid[: photo.shape[0], : photo.shape[1]]
        row, column = rng.uniform(0.3, 0.7, 2) * photo.shape[:2]
        disc = (rows - row) ** 2 + (columns - column) ** 2 < (0.2 * photo.shape[0]) ** 2
        photo[disc] = COLOUR
        mask = folder / "masks" / f"{view.name}.png"
        mask.parent.mkdir(exist_ok=True)
        Image.fromarray(photo).save(view.image_path)
        Image.fromarray(np.where(disc, np.uint8(0), np.uint8(255))).save(mask)


def measure(scene: Path, out: Path, flags: list[str]) -> ViewMetrics:
    """Train, then return the mean metrics of the test photos."""
    command = parse(["train", str(scene), "--preset", "fast", "--iterations", "600", *flags])
    assert isinstance(command, TrainCommand)
    train(load_scene(scene, command.config.scene), replace(command.config, save_every=command.config.iterations), out)
    opened = open_splat(out)
    views = opened.load_scene().test_views
    return evaluate_splat(opened, views, opened.select_rasterizer(), renders=out / "renders").mean


def main() -> None:
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    if split != 1 or arguments[0] in ("-h", "--help"):
        raise SystemExit(__doc__)
    out, flags = Path(arguments[0]), arguments[split + 1 :]
    write_scene(out / "masked")
    shutil.copytree(out / "masked", out / "unmasked", ignore=shutil.ignore_patterns("masks"))
    unmasked, masked = (measure(out / name, out / f"run_{name}", flags) for name in ("unmasked", "masked"))
    print("\n| the disc is | test PSNR, dB | test SSIM |\n|---|---|---|")
    print(f"| unmasked | {unmasked.psnr:.2f} | {unmasked.ssim:.4f} |")
    print(f"| masked | {masked.psnr:.2f} | {masked.ssim:.4f} |")
    print(f"| gain | {masked.psnr - unmasked.psnr:.2f} | {masked.ssim - unmasked.ssim:.4f} |")


if __name__ == "__main__":
    main()
