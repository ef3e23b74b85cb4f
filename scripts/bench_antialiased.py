"""Train with and without --antialiased at half the photos' size, and measure the test views at half, once and twice that size.

    python scripts/bench_antialiased.py SCENE [-- FLAGS OF gs-train train]

The photos are resized to each size, so that what is compared with is what a camera of that resolution would have seen. 3000 iterations
of the default preset unless the flags say otherwise. Prints a Markdown table.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from gs_train.evaluate.evaluate import evaluate
from gs_train.flags import TrainCommand, parse
from gs_train.render.select import select_rasterizer
from gs_train.scene.load import load_scene
from gs_train.training.loop import train


def measure(scene_path: str, flags: list[str]) -> list[float]:
    """Test PSNR in dB at half, once and twice the size trained at."""
    command = parse(["train", scene_path, "--iterations", "3000", "--resolution", "2", *flags])
    assert isinstance(command, TrainCommand)
    config = command.config
    rasterizer = select_rasterizer(config.device, lambda _: None, antialiased=config.antialiased).rasterizer
    psnr = []
    with tempfile.TemporaryDirectory() as folder:
        state = train(load_scene(Path(scene_path), config.scene), config, Path(folder) / "run")
        for resolution in (4, 2, 1):
            views = load_scene(Path(scene_path), replace(config.scene, resolution=resolution)).test_views
            psnr.append(
                evaluate(
                    state.model, views, rasterizer, background=state.background.eval_color(), renders=Path(folder)
                ).mean.psnr
            )
    return psnr


def main() -> None:
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    if split != 1 or arguments[0] in ("-h", "--help"):
        raise SystemExit(__doc__)
    scene, flags = arguments[0], arguments[split + 1 :]
    plain, antialiased = measure(scene, flags), measure(scene, [*flags, "--antialiased"])
    print(f"\n{Path(scene).name}, test PSNR, dB, at the size trained at times\n\n| | 1/2 | 1 | 2 |\n|---|---|---|---|")
    for name, values in (
        ("plain", plain),
        ("--antialiased", antialiased),
        ("gain", [b - a for a, b in zip(plain, antialiased, strict=True)]),
    ):
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")


if __name__ == "__main__":
    main()
