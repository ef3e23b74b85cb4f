"""Trains with and without --antialiased at half the photos' size, and measures test PSNR at three sizes.

    python scripts/bench_antialiased.py SCENE [-- FLAGS OF gs-train train]

The sizes are half, once and twice the training size. Renders are compared with photos resized to that size. Training
takes 3000 iterations of the default preset unless the flags change that. Prints a Markdown table.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from gs_train.commands.train import TrainCommand
from gs_train.evaluate.evaluate import evaluate_splat
from gs_train.flags import parse
from gs_train.run.open import open_splat
from gs_train.scene.load import load_scene
from gs_train.training.loop import train


def measure(scene: Path, flags: list[str]) -> list[float]:
    """Test PSNR in dB at half, once and twice the training size."""
    command = parse(["train", str(scene), "--iterations", "3000", "--resolution", "2", *flags])
    assert isinstance(command, TrainCommand)
    config = command.config
    psnr_db = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train(load_scene(scene, config.scene), config, run)
        opened = open_splat(run)
        selection = opened.select_rasterizer()
        for resolution in (4, 2, 1):
            views = load_scene(scene, replace(config.scene, resolution=resolution)).test_views
            psnr_db.append(evaluate_splat(opened, views, selection, renders=Path(folder)).mean.psnr)
    return psnr_db


def main() -> None:
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    if split != 1 or arguments[0] in ("-h", "--help"):
        raise SystemExit(__doc__)
    scene, flags = Path(arguments[0]), arguments[split + 1 :]
    plain, antialiased = measure(scene, flags), measure(scene, [*flags, "--antialiased"])
    gain = [b - a for a, b in zip(plain, antialiased, strict=True)]
    print(f"\n{scene.name}, test PSNR, dB; size relative to the training\n\n| | 1/2 | 1 | 2 |\n|---|---|---|---|")
    for name, values in (("plain", plain), ("--antialiased", antialiased), ("gain", gain)):
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")


if __name__ == "__main__":
    main()
