"""Splats as .glb: binary glTF with the extension KHR_gaussian_splatting, every value as float32.

glTF's axes are left, up, forward, so a splat is turned by half a turn about z. ``glb_container.py`` has the chunks and
the accessors. Programs without the extension draw coloured points.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gs_train.formats.glb_container import Container, Writer
from gs_train.formats.packing import SH_C0, linear_scales, log_scales, opacities, to_bytes, to_logits, unit_quaternions
from gs_train.formats.reading import Damaged, member, reading, writable, write_file
from gs_train.formats.splat_data import SplatData, SplatFormat
from gs_train.formats.turn import Signs, half_turn

_EXTENSION = "KHR_gaussian_splatting"
_TO_GLTF: Signs = (-1, -1, 1)
_MODE_POINTS = 0


def write_glb(path: Path, data: SplatData) -> None:
    """Create or replace a .glb file.

    Raises:
        UserError: the splat has no Gaussians or values that are not finite, or the file cannot be written.
    """
    data = writable(path, data)
    data = half_turn(data.up_to_degree(FORMAT.max_sh_degree), _TO_GLTF)
    alpha = opacities(data.opacity)
    rgb = 0.5 + SH_C0 * data.f_dc[:, 0]
    writer = Writer()
    attributes = {"POSITION": writer.add(data.xyz, bounds=True)}
    for name, values in (
        ("ROTATION", np.roll(unit_quaternions(data.rotation), -1, axis=1)),
        ("SCALE", linear_scales(data.scaling)),
        ("OPACITY", alpha),
        ("SH_DEGREE_0_COEF_0", data.f_dc[:, 0]),
        *((_sh_name(index), data.f_rest[:, index]) for index in range(data.f_rest.shape[1])),
    ):
        attributes[f"{_EXTENSION}:{name}"] = writer.add(values)
    attributes["COLOR_0"] = writer.add(to_bytes(255 * np.concatenate([_to_linear(rgb), alpha], axis=1)))
    primitive: dict[str, Any] = {
        "attributes": attributes,
        "mode": _MODE_POINTS,
        "extensions": {
            _EXTENSION: {
                "kernel": "ellipse",
                "colorSpace": "srgb_rec709_display",
                "projection": "perspective",
                "sortingMethod": "cameraDistance",
            }
        },
    }
    if data.antialiased:
        # The extension has no member for it.
        primitive["extras"] = {"antialiased": True}
    scene = {"scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}], "meshes": [{"primitives": [primitive]}]}
    write_file(path, writer.content({"extensionsUsed": [_EXTENSION], **scene}))


def read_glb(path: Path) -> SplatData:
    """Read the first splat of a .glb file. Transforms of nodes are not applied.

    Raises:
        UserError: the file does not exist, is damaged, or holds no splat.
    """
    with reading(path, ".glb"):
        container = Container.open(path)
        primitive = _splat_primitive(container.json)
        attributes = member(primitive, "attributes", dict)

        def read(name: str, width: int) -> NDArray[np.float32]:
            return container.read(member(attributes, name, int), width)

        xyz = read("POSITION", 3)
        count = len(xyz)
        if count == 0:
            raise Damaged("it has no Gaussians")
        rotation, scale = read(f"{_EXTENSION}:ROTATION", 4), read(f"{_EXTENSION}:SCALE", 3)
        alpha, f_dc = read(f"{_EXTENSION}:OPACITY", 1), read(f"{_EXTENSION}:SH_DEGREE_0_COEF_0", 3)
        f_rest = [read(f"{_EXTENSION}:{_sh_name(i)}", 3) for i in range(_rest_count(attributes))]
        if any(len(values) != count for values in (rotation, scale, alpha, f_dc, *f_rest)):
            raise Damaged("its attributes have different numbers of rows")
        extras = primitive.get("extras")
        found = SplatData(
            xyz=xyz,
            f_dc=f_dc.reshape(count, 1, 3),
            f_rest=np.stack(f_rest, axis=1) if f_rest else np.zeros((count, 0, 3), dtype=np.float32),
            opacity=to_logits(alpha),
            scaling=log_scales(scale),
            rotation=np.roll(rotation, 1, axis=1),
            antialiased=isinstance(extras, dict) and extras.get("antialiased") is True,
        )
        return half_turn(found, _TO_GLTF)


def _splat_primitive(content: Any) -> dict[str, Any]:
    """The first primitive with the extension."""
    for mesh in member(content, "meshes", list):
        for primitive in member(mesh, "primitives", list):
            extensions = primitive.get("extensions") if isinstance(primitive, dict) else None
            if isinstance(extensions, dict) and _EXTENSION in extensions:
                kind = extensions[_EXTENSION]
                nested = kind.get("extensions") if isinstance(kind, dict) else None
                if nested:
                    raise Damaged("its splat is compressed, which gs-train does not read")
                return dict(primitive)
    raise Damaged(f"it has no mesh with the extension {_EXTENSION}")


def _sh_name(index: int) -> str:
    """Name of the attribute of coefficient ``index`` of ``f_rest``."""
    degree = int((index + 1) ** 0.5)
    return f"SH_DEGREE_{degree}_COEF_{index + 1 - degree**2}"


def _rest_count(attributes: dict[str, Any]) -> int:
    """Number of coefficients above degree 0, by the degrees whose first coefficient is there."""
    degree = 0
    while degree < 3 and f"{_EXTENSION}:SH_DEGREE_{degree + 1}_COEF_0" in attributes:
        degree += 1
    return (degree + 1) ** 2 - 1


def _to_linear(rgb: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Linear values of sRGB values, clamped to 0..1 (IEC 61966-2-1)."""
    clamped = np.clip(rgb, 0, 1)
    linear = np.where(clamped <= 0.04045, clamped / 12.92, ((clamped + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear, dtype=np.float32)


FORMAT = SplatFormat(read=read_glb, write=write_glb, signature=b"glTF", max_sh_degree=3)
"""The entry for ``registry.py``."""
