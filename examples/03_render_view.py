"""Render a held-out view of a run, and its depth map, as PNG files.

    python examples/03_render_view.py runs/example view.png depth.png

`gs_train.open_splat` also opens a checkpoint or a splat file; a splat file has no scene, so give it a `Camera` of your
own.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gs_train import open_splat


def main(run: str, picture: str, depth_map: str) -> None:
    splat = open_splat(Path(run), notify=print)
    scene = splat.load_scene()
    selection = splat.select_rasterizer(notify=print)
    view = (scene.test_views or scene.train_views)[0]
    with torch.no_grad():
        render = selection.rasterizer.render(
            splat.model(selection.device),
            view.camera,
            torch.from_numpy(view.world_to_camera).to(selection.device, torch.float32),
            splat.background(selection.device),
            depth=True,
        )
    pixels = (render.image.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    Image.fromarray(pixels.cpu().numpy()).save(picture)

    # Near is bright. Pixels that no Gaussian covers have depth 0 and stay black.
    depth = render.depth.cpu().numpy()
    near, far = np.percentile(depth[depth > 0], (1, 99))
    nearness = np.where(depth > 0, np.clip((far - depth) / (far - near), 0.0, 1.0), 0.0)
    Image.fromarray((nearness * 255.0).astype(np.uint8)).save(depth_map)
    print(f"{view.name}: {picture}, {depth_map} ({near:.3g} to {far:.3g} world units)")


if __name__ == "__main__":
    main(*sys.argv[1:])
