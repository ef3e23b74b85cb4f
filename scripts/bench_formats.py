"""Measures the splat formats on trained runs: size, time, and the error of renders after a round trip.

    python scripts/bench_formats.py RUN [RUN ...] [--views 8] [--repeat 3]

Each format writes the splat of each run and reads it back. The renders of held-out views from both splats are compared
as PSNR of the mean squared error over all views, in floating point. Seconds are CPU seconds of one thread, the smallest
of the repetitions. Prints the rows of the table in docs/benchmarks.md, as Markdown.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gs_train.formats.registry import read_splat, write_splat
from gs_train.model.gaussians import GaussianModel
from gs_train.run.open import OpenedSplat, open_splat

CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (".ply", "", {}),
    (".glb", "", {}),
    (".sog", "", {}),
    (".sog", "--quality small", {"quality": "small"}),
    (".sog", "--quality high", {"quality": "high"}),
    (".spz", "", {}),
    (".spz", "--spz-version 4", {"spz_version": 4}),
    (".spz", "--sh-bits 6", {"sh_bits": "6"}),
    (".spz", "--sh-bits 5/4", {"sh_bits": "5/4"}),
    (".compressed.ply", "", {}),
    (".splat", "", {}),
)
HEAD = "| format | flags | Gaussians | bytes per Gaussian | write, s | read, s | PSNR, dB |\n" + "|---" * 7 + "|"


def renderer(opened: OpenedSplat, most_views: int) -> Callable[[GaussianModel], Tensor]:
    """A function that renders held-out views of a model; all pixels in one tensor."""
    selection = opened.select_rasterizer("cpu")
    views = opened.load_scene().test_views
    views = views[:: math.ceil(len(views) / most_views)]

    def render(model: GaussianModel) -> Tensor:
        with torch.no_grad():
            images = [
                selection.rasterizer.render(
                    model, view.camera, torch.from_numpy(view.world_to_camera).float(), opened.background()
                ).image
                for view in views
            ]
        return torch.cat([image.reshape(-1) for image in images]).double()

    return render


def smallest_s(repeat: int, action: Callable[[], object]) -> float:
    """The smallest CPU time of the repetitions, seconds."""
    times = []
    for _ in range(repeat):
        began_s = time.process_time()
        action()
        times.append(time.process_time() - began_s)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--views", type=int, default=8, help="most views to render")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of each timing")
    options = parser.parse_args()
    print(HEAD)
    for run in options.runs:
        opened = open_splat(run)
        splat = opened.splat(opened.frame)
        render = renderer(opened, options.views)
        before = render(opened.model())
        for ending, flags, keywords in CASES:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"splat{ending}"
                write_s = smallest_s(options.repeat, lambda: write_splat(path, splat, **keywords))  # noqa: B023
                read_s = smallest_s(options.repeat, lambda: read_splat(path))  # noqa: B023
                size = path.stat().st_size / len(splat)
                after = render(GaussianModel.from_splat_data(read_splat(path), device="cpu"))
            error = float((before - after).square().mean())
            psnr = "no error" if error == 0 else f"{-10 * math.log10(error):.1f}"
            row = (ending, flags, f"{len(splat):,}", f"{size:.1f}", f"{write_s:.2f}", f"{read_s:.2f}", psnr)
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
