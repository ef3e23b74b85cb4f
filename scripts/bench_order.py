"""Does it pay to keep neighbouring Gaussians beside each other in memory?

    python scripts/bench_order.py SCENE [--turns N] [-- FLAGS OF gs-train train]

Trains as it is (reordered along a Morton curve whenever rows come or go), and with the rows left where density control puts them, in turns
with the same seeds, so that a busy machine disturbs both alike. 2000 iterations of the default preset unless the flags say otherwise.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import mean, median

import torch
from torch import Tensor

from gs_train.evaluate.evaluate import evaluate
from gs_train.flags import TrainCommand, parse
from gs_train.model.morton import morton_order
from gs_train.render.select import select_rasterizer
from gs_train.scene.load import load_scene
from gs_train.training import loop


def as_they_come(xyz: Tensor) -> Tensor:
    """[N] the order that the rows have."""
    return torch.arange(len(xyz), device=xyz.device)


ORDERS = {"along a Morton curve": morton_order, "as rows come and go": as_they_come}


def main() -> None:
    own, flags = sys.argv[1:], []
    if "--" in own:
        own, flags = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", metavar="SCENE", help="scene folder")
    parser.add_argument("--turns", type=int, default=3, help="trainings of each kind, with seeds 0, 1 ...")
    arguments = parser.parse_args(own)
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ORDERS}
    for turn in range(arguments.turns):
        for name, order in ORDERS.items():
            command = parse(["train", arguments.scene, "--iterations", "2000", *flags, "--seed", str(turn)])
            assert isinstance(command, TrainCommand)
            scene = load_scene(Path(arguments.scene), command.config.scene)
            loop.morton_order = order
            with tempfile.TemporaryDirectory() as folder:
                state = loop.train(scene, command.config, Path(folder) / "run")
                selection = select_rasterizer(
                    command.config.device, lambda _: None, antialiased=command.config.antialiased
                )
                views = scene.test_views or scene.train_views
                eval_color = state.background.eval_color()
                quality = evaluate(
                    state.model, views, selection.rasterizer, background=eval_color, renders=Path(folder)
                ).mean
            results[name].append((state.elapsed_s, quality.psnr, len(state.model)))
    print(f"\n{Path(arguments.scene).name}, {selection.reason}, {arguments.turns} seeds\n")
    print("| rows | training, median s | PSNR, mean dB (lowest to highest) | Gaussians, mean |\n|---|---|---|---|")
    for name, runs in results.items():
        seconds, psnr, counts = zip(*runs, strict=True)
        print(
            f"| {name} | {median(seconds):.1f} | {mean(psnr):.2f} ({min(psnr):.2f} to {max(psnr):.2f}) | {mean(counts):,.0f} |"
        )


if __name__ == "__main__":
    main()
