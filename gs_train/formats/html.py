"""Splats as one .html page that shows them offline, with the splat inside as .sog.

The parts of the page are in ``gs_train/viewer/page``: plain JavaScript that draws the function of our rasterizers with
WebGL2. This module puts them and the data together, so that a page needs no other file and no network.
"""

from __future__ import annotations

import base64
import html
import json
import math
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gs_train.errors import UserError
from gs_train.formats.reading import Damaged, reading, writable, write_file
from gs_train.formats.sog import Quality, decode_sog, encode_sog
from gs_train.formats.splat_data import SplatData, SplatFormat

_SCRIPTS = ("sog.js", "order.js", "draw.js", "camera.js", "main.js")
_REMOTE_SCRIPTS = ("remote.js", "camera.js", "main.js")
"""In this order, because constants must precede their use."""
_DATA_START = b'<script type="application/octet-stream" id="data">'
_MOST_MEGABYTES = 300
"""Browsers refuse pages that are much larger."""
_FIELD_OF_VIEW = math.radians(50.0)
_DISTANCE = 2.5
"""Of the camera from the middle of a splat without cameras, in median distances of its Gaussians."""


@dataclass(frozen=True, kw_only=True)
class PageCamera:
    """A camera that the page can fly to."""

    name: str
    """Of its photo."""
    eye: tuple[float, ...]
    """[3] position, world units."""
    turn: tuple[float, ...]
    """[9] row-major rotation, world -> camera, OpenCV axes."""
    width: int
    """Of the photo, px."""
    height: int
    """Of the photo, px."""
    fx: float
    """px"""
    fy: float
    """px"""
    cx: float
    """px"""
    cy: float
    """px"""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page shows besides the splat."""

    title: str
    """Name of the scene."""
    cameras: tuple[PageCamera, ...]
    """At least one; the page starts at the first."""
    up: tuple[float, ...]
    """[3] unit vector that is shown upwards."""
    focus: tuple[float, ...]
    """[3] point that the view turns about."""
    distance: float
    """Typical distance of the cameras from the focus, world units."""
    background: tuple[float, ...] = (0.0, 0.0, 0.0)
    """[3] RGB, 0 to 1."""
    photos: bool = True
    """Whether the cameras are those of photos, so that the page offers them by number."""


def write_html(path: Path, data: SplatData, *, page: Page | None = None, quality: Quality = "normal") -> None:
    """Create or replace a page.

    Args:
        path: the file.
        data: the Gaussians.
        page: cameras and background; None chooses a camera in front of the splat.
        quality: of the .sog data, as in ``write_sog``.

    Raises:
        UserError: the splat has no Gaussians or values that are not finite, the page is too large for browsers, or the
            file cannot be written.
    """
    data = writable(path, data)
    content = sog_for_page(data, path, quality=quality)
    write_file(path, page_html(page or default_page(data, path.stem), content).encode())


def sog_for_page(data: SplatData, path: Path, *, quality: Quality = "normal") -> bytes:
    """The content of a .sog file for a page.

    Args:
        data: at least one Gaussian; all values finite.
        path: the file that the error names.
        quality: as in ``write_sog``.

    Raises:
        UserError: it is too large for browsers.
    """
    content = encode_sog(data, quality=quality)
    megabytes = len(content) * 4 / 3e6
    if megabytes > _MOST_MEGABYTES:
        raise UserError(
            f"the page of {path} has {megabytes:,.0f} MB, too much for a browser: export it with --min-opacity, "
            "--max-scale or --box to leave Gaussians out, or as .sog."
        )
    return content


def page_html(page: Page, sog: bytes | None) -> str:
    """The page with a splat in it.

    Args:
        page: cameras and background.
        sog: the content of a .sog file; None for a page that asks its server for pictures.
    """
    folder = files("gs_train.viewer") / "page"
    scripts = _REMOTE_SCRIPTS if sog is None else _SCRIPTS
    # "<" as an escape, so that no name can end the script element.
    settings = json.dumps(asdict(page), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "title": html.escape(page.title),
        "style": (folder / "style.css").read_text(encoding="utf-8"),
        "settings": settings,
        "script": "\n".join((folder / name).read_text(encoding="utf-8") for name in scripts),
        "images": "data: blob:" if sog is not None else "'self'",
        "data": base64.b64encode(sog or b"").decode("ascii"),
    }
    pieces = (folder / "page.html").read_text(encoding="utf-8").split("@")
    # Every second piece is a name, because the page itself has no other "@".
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def read_html(path: Path) -> SplatData:
    """Read the splat in a page of gs-train.

    Raises:
        UserError: the file does not exist, is damaged, or is another page.
    """
    with reading(path, ".html"):
        content = path.read_bytes()
        start = content.rfind(_DATA_START) + len(_DATA_START)
        end = content.find(b"</script>", start)
        if start < len(_DATA_START) or end < 0:
            raise Damaged("it holds no splat of gs-train")
        try:
            sog = base64.b64decode(content[start:end], validate=True)
        except ValueError as error:
            raise Damaged(f"its data are no base64: {error}") from error
        if not sog:
            raise Damaged("it holds no splat, because a server rendered its pictures")
        return decode_sog(sog)


def _is_page(head: bytes) -> bool:
    return head.lstrip().lower().startswith(b"<!doctype html")


def default_page(data: SplatData, title: str) -> Page:
    """A page for a splat without cameras: the view is along the axis z, with -y upwards as in most splat files."""
    xyz = data.xyz.astype(np.float64)
    focus: NDArray[np.float64] = np.median(xyz, axis=0)
    distance = _DISTANCE * max(float(np.median(np.linalg.norm(xyz - focus, axis=1))), 1e-6)
    eye = focus - np.array([0.0, 0.0, distance])
    focal = 500.0 / math.tan(_FIELD_OF_VIEW / 2)
    identity = tuple(np.eye(3).ravel().tolist())
    lens: dict[str, Any] = {"width": 1000, "height": 1000, "fx": focal, "fy": focal, "cx": 500.0, "cy": 500.0}
    camera = PageCamera(name="front", eye=tuple(eye.tolist()), turn=identity, **lens)
    return Page(
        title=title,
        cameras=(camera,),
        up=(0.0, -1.0, 0.0),
        focus=tuple(focus.tolist()),
        distance=distance,
        photos=False,
    )


FORMAT = SplatFormat(
    read=read_html, write=write_html, recognise=_is_page, max_sh_degree=3, write_options=("page", "quality")
)
"""The entry for ``registry.py``."""
