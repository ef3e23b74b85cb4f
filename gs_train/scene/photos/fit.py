"""Fits photos to their cameras: the orientation of the pixels, their size, and the value that becomes white.

Some programs compute poses from the stored pixels of a photo (COLMAP), others from the pixels that the EXIF orientation
turns upright (phone apps, Metashape, nerfstudio). The sizes tell which, and where both sizes fit, the colours of the
scene's points do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.camera import Camera
from gs_train.cameras.distortion import project
from gs_train.errors import FileFault, UserError, combine_faults
from gs_train.scene.photos.files import Header, read_header, turned_size
from gs_train.scene.photos.levels import WHITE, dark_notice, find_white, peek
from gs_train.scene.readers.reconstruction import Reconstruction, RegisteredImage

REDUCED = (2, 4, 8)
"""Factors by which photos may be smaller than the model's."""

_ROUNDING_PX = 1.0
_COMPARED = 6
_FEWEST_POINTS = 20
# The correlation of pixels with the colours of their points is 0.6 to 0.98 for the right orientation of real photos,
# and -0.3 to 0.4 for a wrong one. The median difference of six photos is at least 0.39.
_CLEARLY = 0.2


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photo that fits its camera."""

    image: RegisteredImage
    file: Path
    size: tuple[int, int]
    """(width, height) after turning, px."""
    orientation: int
    """As in ``View``."""
    white: float
    """As in ``View``."""


def fit_photos(
    files: Sequence[tuple[RegisteredImage, Path]],
    folder: Path,
    model: Reconstruction,
    images_name: str,
    on_fault: Callable[[UserError], None],
) -> tuple[list[Photo], list[str]]:
    """The photos that fit their cameras, in order, and notices for the user.

    Args:
        files: images and their files.
        folder: folder of the photos. The name images_4 says that they have a quarter of their cameras' size.
        model: cameras and points.
        images_name: name of the folder of photos at full size, for messages.
        on_fault: takes faults of headers and sizes, one for all photos that share it.
    """
    suffix = re.search(r"_([248])$", folder.name)
    factors = (1, int(suffix[1])) if suffix else (1,)
    headers: dict[Path, Header] = {}
    faults: list[UserError] = []
    for _, file in files:
        try:
            headers[file] = read_header(file)
        except UserError as error:
            faults.append(error)
    read = [(image, file) for image, file in files if file in headers]
    orientations, notices = _orientations(read, headers, model, factors)
    whites, white_notices = find_white(headers)
    photos, misfits = [], []
    for image, file in read:
        camera, size = model.cameras[image.camera_id], turned_size(headers[file].size, orientations[file])
        if _fits(size, camera, factors):
            photos.append(
                Photo(
                    image=image,
                    file=file,
                    size=size,
                    orientation=orientations[file],
                    white=whites.get(file, WHITE),
                )
            )
        else:
            misfits.append((file, size, camera))
    shared = None if photos else _shared_factor(misfits)
    faults += _misfit_faults(misfits, model, _remedy(folder, model, images_name, shared))
    for fault in combine_faults(faults):
        on_fault(fault)
    return photos, [*notices, *white_notices, *dark_notice(whites, [photo.file for photo in photos])]


def fits_either_way(header: Header, camera: Camera, factor: int) -> bool:
    """Whether the stored or the upright pixels have the camera's size over ``factor``, rounded in any way."""
    return any(_fits(turned_size(header.size, turn), camera, (factor,)) for turn in {1, header.orientation})


def _fits(size: tuple[int, int], camera: Camera, factors: Sequence[int]) -> bool:
    return any(
        abs(size[0] - camera.width / factor) <= _ROUNDING_PX and abs(size[1] - camera.height / factor) <= _ROUNDING_PX
        for factor in factors
    )


_Misfit = tuple[Path, tuple[int, int], Camera]


def _shared_factor(misfits: Sequence[_Misfit]) -> int | None:
    """The factor by which all photos are smaller than their cameras; None if there is none."""
    fitting = (factor for factor in REDUCED if all(_fits(size, camera, (factor,)) for _, size, camera in misfits))
    return next(fitting, None)


def _misfit_faults(misfits: Sequence[_Misfit], model: Reconstruction, remedy: str) -> Iterator[UserError]:
    for file, (width, height), camera in misfits:
        sizes = f"is {width}x{height} px, but its camera in {model.cameras_path} is {camera.width}x{camera.height} px"
        yield FileFault(f"{file} {sizes}: {remedy}.", file=file, kind="size")


def _remedy(folder: Path, model: Reconstruction, images_name: str, shared: int | None) -> str:
    remedy = "use the photos that the model was made from"
    if shared is None:
        return f"{remedy} (`gs-train train --images` names another folder)"
    if model.names_from_scene:
        return f"divide w, h, cx, cy, fl_x and fl_y in {model.cameras_path} by {shared}, or {remedy}"
    rename = f"rename {folder} to {images_name}_{shared} and train with --resolution {shared}"
    return f"{rename}, because all photos have 1/{shared} of that size, or {remedy}"


# ---- orientation


def _orientations(
    files: Sequence[tuple[RegisteredImage, Path]],
    headers: Mapping[Path, Header],
    model: Reconstruction,
    factors: Sequence[int],
) -> tuple[dict[Path, int], list[str]]:
    """The EXIF orientation to apply to each file, 1 for none, and notices for the user."""
    turnable = [(image, file) for image, file in files if headers[file].orientation != 1]
    if not turnable:
        return {file: 1 for _, file in files}, []
    upright: dict[Path, bool] = {}
    unclear = []
    for image, file in turnable:
        header, camera = headers[file], model.cameras[image.camera_id]
        stored_fits = _fits(header.size, camera, factors)
        upright_fits = _fits(turned_size(header.size, header.orientation), camera, factors)
        if stored_fits != upright_fits:
            upright[file] = upright_fits
        else:
            unclear.append((image, file))
    known = set(upright.values())
    by_colours = _upright_by_colours(unclear, headers, model) if unclear and len(known) != 1 else None
    for _, file in unclear:
        upright[file] = known == {True} if len(known) == 1 else bool(by_colours)
    turned_count = sum(upright.values())
    notices = []
    if turned_count:
        message = f"{turned_count} of {len(files)} photos are turned upright by their EXIF orientation"
        notices.append(f"{message}, because {model.cameras_path} describes upright photos.")
    if turned_count < len(turnable):
        message = f"{len(turnable) - turned_count} of {len(files)} photos have an EXIF orientation that is not applied"
        is_unknown = bool(unclear) and len(known) != 1 and by_colours is None
        unknown = f"neither sizes nor colours show whether {model.cameras_path} describes upright photos"
        reason = unknown if is_unknown else f"{model.cameras_path} describes the photos as they are stored"
        notices.append(f"{message}, because {reason}.")
    return {file: headers[file].orientation if upright.get(file) else 1 for _, file in files}, notices


def _upright_by_colours(
    files: Sequence[tuple[RegisteredImage, Path]], headers: Mapping[Path, Header], model: Reconstruction
) -> bool | None:
    """Whether the colours of the points fit the upright photos better than the stored photos; None if unclear."""
    places = np.linspace(0, len(files) - 1, min(_COMPARED, len(files))).round().astype(int)
    differences = []
    for image, file in (files[place] for place in places):
        try:
            pair = [_correlation(peek(file, turn), image, model) for turn in (headers[file].orientation, 1)]
        except UserError:  # Decoding reports a damaged photo.
            continue
        if pair[0] is not None and pair[1] is not None:
            differences.append(pair[0] - pair[1])
    median = float(np.median(differences)) if differences else 0.0
    return median > 0 if abs(median) >= _CLEARLY else None


def _correlation(pixels: NDArray[np.float32], image: RegisteredImage, model: Reconstruction) -> float | None:
    """Correlation of the colours of points with the pixels that they project to; None with too few points.

    Args:
        pixels: [H, W, 3] the photo at any size and brightness.
        image: pose, and the points matched in the photo if the model lists them.
        model: cameras and points.
    """
    camera, points = model.cameras[image.camera_id], model.points
    xyz, rgb = points.xyz, points.rgb
    if image.point_ids is not None and points.ids is not None:
        matched = np.isin(points.ids, image.point_ids)
        if np.count_nonzero(matched) >= _FEWEST_POINTS:
            xyz, rgb = xyz[matched], rgb[matched]
    in_camera = xyz @ image.world_to_camera[:3, :3].T + image.world_to_camera[:3, 3]
    ahead = in_camera[:, 2] > 0
    height, width = pixels.shape[:2]
    with np.errstate(all="ignore"):
        places = project(camera, in_camera[ahead, :2] / in_camera[ahead, 2:])
        places = places * (width / camera.width, height / camera.height)
        inside = np.asarray(((places >= 0) & (places < (width, height))).all(axis=1))
    if np.count_nonzero(inside) < _FEWEST_POINTS:
        return None
    column, row = places[inside].astype(int).T
    seen, wanted = pixels[row, column].astype(np.float64), rgb[ahead][inside].astype(np.float64)
    seen, wanted = seen - seen.mean(axis=0), wanted - wanted.mean(axis=0)
    spread = float(np.sqrt((seen**2).sum() * (wanted**2).sum()))
    return float((seen * wanted).sum()) / spread if np.isfinite(spread) and spread > 0 else None
