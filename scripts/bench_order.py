"""Does it pay to keep neighbouring Gaussians beside each other in memory?

    python scripts/bench_order.py SCENE [-- FLAGS OF gs-train train]

Trains (1500 iterations of the default preset unless the flags say otherwise), and then times render, loss, backward and Adam step over the
training views with the Gaussians in the order that training left them in, along a Morton curve, and shuffled; in turns, so that a busy
machine disturbs all alike. Prints a Markdown table.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from gs_train import losses
from gs_train.flags import TrainCommand, parse
from gs_train.model.gaussians import GaussianModel
from gs_train.render.select import select_rasterizer
from gs_train.scene.composite import over
from gs_train.scene.images import decode_image
from gs_train.scene.load import load_scene
from gs_train.train.loop import train

BITS, TURNS, VIEWS = 10, 7, 10


def morton_order(xyz: Tensor) -> Tensor:
    """[N] rows along a Morton curve through the middle 98 % of the positions; the others lie at its ends."""
    low, high = torch.quantile(xyz[torch.randperm(len(xyz))[:100_000]], torch.tensor([0.01, 0.99]), dim=0)
    cells = ((xyz - low) / (high - low)).clamp(0, 1).mul(2**BITS - 1).long()
    code = torch.zeros(len(xyz), dtype=torch.int64)
    for bit in range(BITS):
        for axis in range(3):
            code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return code.argsort(stable=True)


def main() -> None:
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    if split != 1 or arguments[0] in ("-h", "--help"):
        raise SystemExit(__doc__)
    command = parse(["train", arguments[0], "--iterations", "1500", *arguments[split + 1 :]])
    assert isinstance(command, TrainCommand)
    config = command.config.resolved()
    scene = load_scene(Path(arguments[0]), config.scene)
    selection = select_rasterizer(config.device, print)
    with tempfile.TemporaryDirectory() as folder:
        trained = train(scene, config, Path(folder) / "run").model
    count = len(trained)
    xyz = trained.xyz.detach().cpu()
    orders = {"as trained": torch.arange(count), "Morton": morton_order(xyz), "shuffled": torch.randperm(count)}
    models = {}
    for name, order in orders.items():
        models[name] = GaussianModel.from_state_dict(trained.state_dict(), selection.device)
        models[name].training_setup(config.optimizer)
        models[name].reorder_optimizer(order)
    black = torch.zeros(3, device=selection.device)
    views = scene.train_views[:: max(1, len(scene.train_views) // VIEWS)]
    photos = [over(decode_image(view), black) for view in views]
    poses = [torch.from_numpy(view.world_to_camera).to(selection.device, torch.float32) for view in views]
    spent: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(TURNS):
        for name, model in models.items():
            began_s = time.perf_counter()
            for view, photo, pose in zip(views, photos, poses, strict=True):
                render = selection.rasterizer.render(model, view.camera, pose, black)
                losses.photometric_loss(render.image, photo, config.lambda_dssim).backward()
                model.step(1, render.visible())
            if turn > 0:  # the first warms up
                spent[name].append((time.perf_counter() - began_s) / len(views) * 1000)
    print(f"\n{scene.path.name}, {count:,} Gaussians, {selection.reason}\n\n| order | iteration, median ms |\n|---|---|")
    for name, times in spent.items():
        print(f"| {name} | {median(times):.1f} |")


if __name__ == "__main__":
    main()
