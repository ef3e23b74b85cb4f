"""What masks are worth: a disc that is somewhere else in every training photo of the sample scene, trained with its masks and without.

    python scripts/bench_masks.py OUT [-- FLAGS OF gs-train train]

The test photos are clean, so a ghost of the disc costs PSNR there. 600 iterations of the preset fast unless the flags say otherwise. Writes
the scene and the renders beside their photos to OUT, a new folder, and prints a Markdown table.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from gs_train.evaluate.evaluate import Evaluation, evaluate
from gs_train.flags import TrainCommand, parse
from gs_train.render.select import select_rasterizer
from gs_train.sample.scene import write_sample_scene
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.training.loop import train

COLOUR = (235, 30, 190)


def write_scene(folder: Path) -> None:
    """The sample scene with a disc in every training photo, and a mask over it."""
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


def measure(scene: Path, out: Path, flags: list[str]) -> Evaluation:
    """Train, and measure on the clean test photos."""
    command = parse(["train", str(scene), "--preset", "fast", "--iterations", "600", *flags])
    assert isinstance(command, TrainCommand)
    config = replace(command.config, save_every=command.config.iterations)
    loaded = load_scene(scene, config.scene)
    state = train(loaded, config, out)
    rasterizer = select_rasterizer(config.device, lambda _: None, antialiased=config.antialiased).rasterizer
    return evaluate(
        state.model, loaded.test_views, rasterizer, background=state.background.eval_color(), renders=out / "renders"
    )


def main() -> None:
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    if split != 1 or arguments[0] in ("-h", "--help"):
        raise SystemExit(__doc__)
    out, flags = Path(arguments[0]), arguments[split + 1 :]
    write_scene(out / "masked")
    shutil.copytree(out / "masked", out / "unmasked", ignore=shutil.ignore_patterns("masks"))
    found = {name: measure(out / name, out / f"run_{name}", flags) for name in ("unmasked", "masked")}
    print("\n| the disc is | test PSNR, dB | test SSIM |\n|---|---|---|")
    for name, evaluation in found.items():
        print(f"| {name} | {evaluation.mean.psnr:.2f} | {evaluation.mean.ssim:.4f} |")
    masked, unmasked = found["masked"].mean, found["unmasked"].mean
    print(f"| gain | {masked.psnr - unmasked.psnr:.2f} | {masked.ssim - unmasked.ssim:.4f} |")


if __name__ == "__main__":
    main()
