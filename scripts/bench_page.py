"""Measures the page of a splat in headless Chromium: time from loading to the first picture, of a sort, its pictures.

    GS_TRAIN_NODE_MODULES=.../node_modules python scripts/bench_page.py RUN [RUN ...] [--views 5] [--copies 1]

The pictures of held-out views are compared with renders of our CPU rasterizer, as mean PSNR: renders of the .sog that
the page contains, and of the run's own splat. Needs Chromium, Node.js, and playwright-core in the folder that
GS_TRAIN_NODE_MODULES names. ``--copies`` repeats the Gaussians, moved by their own size, to measure larger splats.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gs_train.formats.html import page_html, sog_for_page
from gs_train.formats.registry import read_splat
from gs_train.formats.splat_data import SplatData
from gs_train.model.gaussians import GaussianModel
from gs_train.run.open import OpenedSplat, open_splat
from gs_train.scene.types import View
from gs_train.viewer.page_of import page_of

SHOW_PAGE = Path(__file__).resolve().parent.parent / "tests" / "show_page.cjs"
HEAD = (
    "| run | Gaussians | page, MB | first picture, s | sort, ms | PSNR to the .sog, dB | to the splat, dB |\n"
    + "|---" * 7
    + "|"
)


def camera_of(view: View) -> dict[str, Any]:
    """A camera as the page takes it."""
    camera, pose = view.camera, view.world_to_camera
    return {
        "turn": pose[:3, :3].ravel().tolist(),
        "shift": pose[:3, 3].tolist(),
        "focal": [camera.fx, camera.fy],
        "centre": [camera.cx, camera.cy],
        "size": [camera.width, camera.height],
    }


def repeated(splat: SplatData, copies: int) -> SplatData:
    """The splat with each Gaussian ``copies`` times, the copies moved by about its size."""
    rows = np.tile(np.arange(len(splat)), copies)
    data = splat.keep(rows)
    moved = np.random.default_rng(0).normal(size=(len(rows), 3)) * np.exp(data.scaling)
    moved[: len(splat)] = 0.0
    data.xyz[:] += moved.astype(data.xyz.dtype)
    return data


def mean_psnr(folder: Path, model: GaussianModel, views: list[View], opened: OpenedSplat) -> float:
    """Mean PSNR of the pictures in ``folder`` against CPU renders, dB."""
    selection, figures = opened.select_rasterizer("cpu"), []
    for index, view in enumerate(views):
        pose = torch.from_numpy(view.world_to_camera).float()
        with torch.no_grad():
            render = selection.rasterizer.render(model, view.camera, pose, opened.background()).image
        drawn = np.asarray(Image.open(folder / f"{index}.png").convert("RGB")) / 255.0
        figures.append(-10 * np.log10(np.square(drawn - render.numpy().clip(0, 1)).mean()))
    return statistics.fmean(figures)


def measure(run: Path, options: argparse.Namespace) -> str:
    """The row of a run."""
    opened = open_splat(run)
    splat = repeated(opened.splat(), options.copies)
    views = opened.load_scene().test_views
    views = views[:: -(-len(views) // options.views)]
    page = page_of(opened, np.eye(3), 1.0, (0.0, 0.0, 0.0))
    assert page is not None
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name)
        folder.mkdir(exist_ok=True)
        (folder / "splat.sog").write_bytes(sog := sog_for_page(splat, opened.path))
        (folder / "page.html").write_text(page_html(page, sog), encoding="utf-8")
        (folder / "cameras.json").write_text(json.dumps([camera_of(view) for view in views]))
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        command = ["node", SHOW_PAGE, chromium, folder / "page.html", folder / "cameras.json", folder]
        environment = os.environ | {"NODE_PATH": os.environ["GS_TRAIN_NODE_MODULES"]}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
        told = json.loads(done.stdout)
        if told["requests"] or told["faults"]:
            sys.exit(f"{run}: {told}")
        size = (folder / "page.html").stat().st_size / 1e6
        to_sog = mean_psnr(folder, GaussianModel.from_splat_data(read_splat(folder / "splat.sog")), views, opened)
        to_splat = mean_psnr(folder, GaussianModel.from_splat_data(splat), views, opened)
    figures = f"{told['first'] / 1000:.1f} | {statistics.median(told['sorts']):.0f} | {to_sog:.1f} | {to_splat:.1f}"
    return f"| {run.name} | {len(splat):,} | {size:.1f} | {figures} |"


def main() -> None:
    """Measure the runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--views", type=int, default=5, help="held-out views to draw")
    parser.add_argument("--copies", type=int, default=1, help="repeat the Gaussians")
    parser.add_argument("--keep", type=Path, help="leave the page and the pictures of the last run in this folder")
    options = parser.parse_args()
    print(HEAD)
    for run in options.runs:
        print(measure(run, options), flush=True)


if __name__ == "__main__":
    main()
