"""Pictures of a splat for ``page/remote.js``, which shows them in browsers without WebGL2."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from urllib.parse import parse_qs

import numpy as np
from PIL import Image

from gs_train.cameras.camera import Camera
from gs_train.formats.splat_data import SplatData
from gs_train.model.gaussians import GaussianModel
from gs_train.render.select import Selection
from gs_train.run.open import OpenedSplat
from gs_train.viewer.pictures import Look, Painter
from gs_train.viewer.wishes import LARGEST_NUMBER, MOVING_QUALITY, MOVING_SCALE, QUALITY, Wish

_LARGEST_CANVAS_PX = 16384


def picture_maker(opened: OpenedSplat, data: SplatData, selection: Selection) -> Callable[[str], bytes]:
    """A function that answers a query of the page with a JPEG file. Threads may call it.

    It raises ValueError for a query that is no camera, and MemoryError.

    Args:
        opened: the splat.
        data: its Gaussians in the coordinates of the page, finite.
        selection: the rasterizer of the splat.
    """
    model = GaussianModel.from_splat_data(data, device=selection.device)
    background, painter, lock = opened.background(selection.device), Painter(selection.rasterizer), threading.Lock()

    def answer(query: str) -> bytes:
        fields = parse_qs(query)
        wish, moving = read_camera(fields.get("camera", [""])[0]), fields.get("moving") == ["1"]
        # One at a time: each picture uses all cores.
        with lock:
            picture = painter.paint(model, wish, Look(), lambda: background, MOVING_SCALE if moving else 1.0)
        if picture is None:
            raise MemoryError("no memory for a picture")
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=MOVING_QUALITY if moving else QUALITY)
        return file.getvalue()

    return answer


def read_camera(text: str) -> Wish:
    """The wish of a page: 18 numbers, which are turn [9], shift [3], focal [2], centre [2] and size [2].

    Raises:
        ValueError: the numbers are no camera.
    """
    numbers = [float(part) for part in text.split(",")]
    if len(numbers) != 18 or not all(abs(number) < LARGEST_NUMBER for number in numbers):
        raise ValueError("not 18 numbers")
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = np.reshape(numbers[:9], (3, 3)), numbers[9:12]
    fx, fy, cx, cy, width, height = numbers[12:]
    if not np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-3):
        raise ValueError("not a rotation")
    if not (1 <= min(width, height) and max(width, height) <= _LARGEST_CANVAS_PX and min(fx, fy) > 1e-3):
        raise ValueError("not a lens")
    lens = Camera(width=round(width), height=round(height), fx=fx, fy=fy, cx=cx, cy=cy)
    return Wish(world_to_camera=pose, lens=lens)
