"""Folders of evaluated runs without a training: config, figures, curves and pictures of arbitrary values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gs_train.config.settings import TrainConfig
from gs_train.config.toml import write_toml
from gs_train.evaluate.pictures import png_names

SCENE = Path("/scenes/desk")
SIZE = (24, 16)


def write_run(
    folder: Path,
    views: Mapping[str, Mapping[str, Any]],
    *,
    scene: Path = SCENE,
    iterations: int = 100,
    results: Mapping[str, Any] | None = None,
    photo: int = 0,
) -> Path:
    """Write the folder of a run and return it.

    Args:
        folder: to create.
        views: name of each view -> its figures.
        scene: path of the scene in config.toml.
        iterations: of the training.
        results: further values of results.json.
        photo: seed of the photos.
    """
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(write_toml(TrainConfig(iterations=iterations).resolved(), scene))
    metrics = {name for figures in views.values() for name in figures}
    means = {name: float(np.mean([figures.get(name, 0.0) for figures in views.values()])) for name in metrics}
    figures = {"iteration": iterations, "split": "test", "views": len(views), **means, "gaussians": 1234}
    (folder / "results.json").write_text(json.dumps({**figures, "rasterizer": "cpu", **(results or {})}))
    (folder / "per_view.json").write_text(json.dumps(views))
    (folder / "run.json").write_text(json.dumps({"loop_s": 12.5, "device": "cpu", "versions": {"torch": "2.13.0"}}))
    lines = (
        {"iteration": i, "loss": 1 / i, "psnr": 20 + i / 10, "gaussians": 10 * i, "elapsed_s": i / 2, "lr_xyz": 0.1 / i}
        for i in range(10, iterations + 1, 10)
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "renders" / f"iteration_{iterations}").mkdir(parents=True)
    for number, name in enumerate(png_names(list(views))):
        pixels = np.random.default_rng([photo, number]).integers(0, 255, (2, 6, 3), np.uint8)
        blurred = Image.fromarray(pixels).resize((2 * SIZE[0], SIZE[1]), Image.Resampling.BICUBIC)
        blurred.save(folder / "renders" / f"iteration_{iterations}" / name)
    return folder


def page_data(page: str) -> dict[str, Any]:
    """The pictures of a page and their labels."""
    text = page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    data: dict[str, Any] = json.loads(text)
    return data
