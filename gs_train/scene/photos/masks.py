"""Finds, checks and decodes the masks of a scene's photos. Hidden pixels do not count in training and evaluation.

``decode.py`` combines a mask with its photo. A mask that this module assigns has its photo's aspect ratio and leaves
some of it visible. Three forms of masks are read, in this order:

- the file that ``mask_path`` of a frame names (nerfstudio): black pixels hide;
- a file in the folder of masks with the photo's name: black pixels hide;
- ``dynamic_mask_NAME.png`` beside the photo NAME (instant-ngp): white pixels hide.

Source of the polarities: the data conventions of nerfstudio, and the README of instant-ngp.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gs_train.errors import FileFault, UserError, combine_faults, first_few
from gs_train.scene.photos.files import SUFFIXES, inverse, opened, read_header, turned, turned_size
from gs_train.scene.photos.find import spelling
from gs_train.scene.photos.threads import for_each
from gs_train.scene.types import Mask, View

_ASPECT_SHARE = 0.01
_SUSPICIOUS_SHARE = 0.6
_DYNAMIC = "dynamic_mask_"
_NAME_SUFFIXES = ("", "_mask", ".mask")
_IF_DAMAGED = "make the mask again, or remove it from its folder"
_BLACK_AND_WHITE_SHARE = 0.95
_NEAR = 25


# ---- decoding


def decode_mask(mask: Mask) -> NDArray[np.uint8]:
    """[H, W] uint8 at the mask's own size: 0 for pixels that hide the photo's, 255 for others.

    Values below half of the mask's largest value are black. Masks of 0 and 1 therefore work like masks of 0 and 255,
    and JPEG noise in black areas has no effect.

    Raises:
        UserError: the file is truncated, cannot be decoded, or has more than 500 megapixels.
    """
    with opened(mask.path, if_damaged=_IF_DAMAGED) as stored:
        image = turned(stored, mask.orientation)
        white = _white(_alpha(image) if mask.in_alpha else _grey(image))
        return np.where(white != mask.inverted, np.uint8(255), np.uint8(0))


def _grey(image: Image.Image) -> NDArray[Any]:
    return np.asarray(image if image.mode.startswith(("I", "F")) else image.convert("L"))


def _alpha(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGBA").getchannel("A"))


def _white(values: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray((values > 0) & (values >= 0.5 * float(values.max())))


# ---- finding


def with_masks(
    views: Sequence[View],
    folder: Path | None,
    named: Mapping[str, Path],
    *,
    invert: bool,
    on_fault: Callable[[UserError], None],
) -> tuple[tuple[View, ...], list[str]]:
    """Assign each view its mask.

    The mask of ``a/b.jpg`` in the folder is ``a/b.jpg.png`` (COLMAP's convention) or else ``a/b.png``, with any ending
    of an image, also ``a/b_mask.png`` or ``a/b.mask.png``. If all image names begin with the same folder, as in a
    transforms.json, masks may leave it out.

    Args:
        views: at their training size.
        folder: an existing folder of masks; None without one.
        named: masks that the scene's own file names, by view name.
        invert: swap black and white in every mask.
        on_fault: takes the fault of a mask: it does not exist, cannot be decoded, or its aspect ratio differs from the
            photo's. If ``on_fault`` returns, the view has no mask.

    Returns:
        The views, except views that their mask hides completely, and notices for the user.
    """
    found = _find(views, folder, named)
    masked = [view for view in views if view.name in found]
    examined: dict[str, _Examined] = {}
    faults = []
    results = for_each(lambda view: _examine(view, found[view.name]), masked)
    for view, result in zip(masked, results, strict=True):
        if isinstance(result, UserError):
            faults.append(result)
        else:
            examined[view.name] = result
    for fault in combine_faults(faults):
        on_fault(fault)
    alpha_is_used = any(each.is_in_alpha for each in examined.values())
    kept, masks = [], {}
    for view in views:
        each = examined.get(view.name)
        if each is None:
            kept.append(view)
            continue
        mask = masks[view.name] = each.mask(alpha_is_used, invert)
        if mask.hidden < 1.0:
            kept.append(replace(view, mask=mask))
    return tuple(kept), _notices(len(views), folder, found, examined, masks, invert)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A mask file."""

    path: Path
    form: str
    """The form of the mask, for notices."""
    white_hides: bool = False


@dataclass(frozen=True, kw_only=True)
class _Examined:
    """The content of a mask file, apart from the decisions that all masks of the scene share."""

    found: _Found
    orientation: int
    resized: bool
    """Whether its size differs from the photo's."""
    white: float
    """Share of white pixels."""
    opaque: float | None
    """Share of opaque pixels; None if only the colours can hold the mask."""
    is_in_alpha: bool
    """Whether only the alpha channel can hold the mask."""

    def mask(self, alpha_is_used: bool, invert: bool) -> Mask:
        """The mask. A mask of one colour without transparent pixels follows the others (``alpha_is_used``)."""
        in_alpha = alpha_is_used and self.opaque is not None
        white = self.opaque if in_alpha and self.opaque is not None else self.white
        inverted = self.found.white_hides != invert
        return Mask(
            path=self.found.path,
            in_alpha=in_alpha,
            inverted=inverted,
            orientation=self.orientation,
            hidden=white if inverted else 1.0 - white,
        )


def _find(views: Sequence[View], folder: Path | None, named: Mapping[str, Path]) -> dict[str, _Found]:
    """The mask file of each view that has one, by view name."""
    masks: dict[str, Path] = {}
    if folder is not None:
        # Annotation tools leave other files with the same names beside the masks. The files are sorted, so that one of
        # two masks for the same photo always wins.
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        masks = {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
    spellings = Counter(map(spelling, masks))
    respelled = {spelling(key): file for key, file in masks.items() if spellings[spelling(key)] == 1}
    firsts = {PurePosixPath(view.name).parts[0] for view in views}
    shared = f"{firsts.pop()}/" if len(firsts) == 1 else ""
    shared_spelling = f"{spelling(shared)}/" if shared else ""
    folders = {view.image_path.parent for view in views}
    dynamic = {file for parent in folders if parent.is_dir() for file in parent.glob(f"{_DYNAMIC}*.png")}
    found = {}
    for view in views:
        beside = view.image_path.with_name(f"{_DYNAMIC}{view.image_path.stem}.png")
        in_folder = _mask_of(view.name, shared, masks)
        if in_folder is None:
            in_folder = _mask_of(spelling(view.name), shared_spelling, respelled)
        if view.name in named:
            found[view.name] = _Found(path=named[view.name], form="named by mask_path")
        elif in_folder is not None:
            found[view.name] = _Found(path=in_folder, form=f"in {folder}")
        elif beside in dynamic:
            form = f"in {_DYNAMIC}*.png beside the photos, white pixels hide"
            found[view.name] = _Found(path=beside, form=form, white_hides=True)
    return found


def _mask_of(name: str, shared: str, masks: Mapping[str, Path]) -> Path | None:
    """The mask of image ``name``; None without one.

    Args:
        name: the image name.
        shared: a prefix of the image name that the mask's path may lack.
        masks: mask files by their path in the masks folder without the last ending.
    """
    names = (name, name.removeprefix(shared))
    keys = (key for each in names for key in (each, PurePosixPath(each).with_suffix("").as_posix()))
    return next((masks[key + end] for key in keys for end in _NAME_SUFFIXES if key + end in masks), None)


def _notices(
    views: int,
    folder: Path | None,
    found: Mapping[str, _Found],
    examined: Mapping[str, _Examined],
    masks: Mapping[str, Mask],
    invert: bool,
) -> list[str]:
    """Sentences about the masks: their forms, and the share of the photos that they hide."""
    if not found:
        return [] if folder is None else [f"0 of {views} photos have a mask in {folder}."]
    forms = Counter(each.form for each in found.values())
    listed = "; ".join(form if len(forms) == 1 else f"{count} {form}" for form, count in forms.items())
    message = f"{len(found)} of {views} photos have a mask ({listed}"
    if in_alpha := sum(mask.in_alpha for mask in masks.values()):
        message += f"; {in_alpha} in the alpha channel"
    hidden = float(np.mean([mask.hidden for mask in masks.values()])) if masks else 0.0
    inverted = ", black and white swapped" if invert else ""
    notices = [f"{message}{inverted}): masks hide {100 * hidden:.1f} % of these photos."]
    if hidden > _SUSPICIOUS_SHARE:
        swap = "leave --invert-masks out" if invert else "train with --invert-masks"
        notices.append(f"Masks rarely hide as much as {100 * hidden:.0f} %: if black and white are swapped, {swap}.")
    if resized := sum(each.resized for each in examined.values()):
        notices.append(f"{resized} of the masks differ in size from their photos: resized.")
    if gone := sorted(name for name, mask in masks.items() if mask.hidden == 1.0):
        notices.append(f"{len(gone)} photos are left out, because masks hide them completely ({first_few(gone)}).")
    return notices


# ---- examining


def _examine(view: View, found: _Found) -> _Examined | UserError:
    """The content of a mask file, or its fault."""
    try:
        if not os.path.isfile(found.path):  # A name too long for the disk counts as missing.
            message = f"{found.path} does not exist, but mask_path names it as the mask of {view.name}"
            remedy = "copy it there, or remove mask_path from the frame"
            raise FileFault(f"{message}: {remedy}.", file=found.path, kind="missing mask")
        # Decoding comes first, because its errors name the mask.
        with opened(found.path, if_damaged=_IF_DAMAGED) as image:
            white = _white(_grey(image))
            opaque, is_in_alpha = _examine_alpha(image) if image.has_transparency_data else (None, False)
        orientation, resized = _fit(view, found.path)
    except UserError as fault:
        return fault
    return _Examined(
        found=found,
        orientation=orientation,
        resized=resized,
        white=float(white.mean()),
        opaque=opaque,
        is_in_alpha=is_in_alpha,
    )


def _examine_alpha(image: Image.Image) -> tuple[float | None, bool]:
    """Share of opaque pixels, None if the colours hold the mask; and whether only the alpha channel can hold it.

    Black and white areas among the opaque pixels are a mask. Any other colours are not: one colour throughout, or those
    of a photo that was cut out.
    """
    alpha, grey = _alpha(image), np.asarray(image.convert("L"))
    opaque = _white(alpha)
    seen = grey[opaque]
    black, white = (seen <= _NEAR).mean() if seen.size else 0.0, (seen >= 255 - _NEAR).mean() if seen.size else 0.0
    if min(black, white) > 0 and black + white >= _BLACK_AND_WHITE_SHARE:
        return None, False
    if alpha.min() == alpha.max() and grey.min() != grey.max():
        return None, False
    return float(opaque.mean()), bool(alpha.min() < alpha.max())


def _fit(view: View, path: Path) -> tuple[int, bool]:
    """The EXIF orientation that turns the mask like its photo, and whether its size then differs from the photo's.

    Raises:
        UserError: the aspect ratio differs.
    """
    photo, mask = read_header(view.image_path), read_header(path)
    width, height = turned_size(photo.size, view.orientation)
    # A mask shows the stored or the upright photo. A mask with the photo's EXIF orientation was stored like the photo.
    turns = [1, view.orientation, inverse(photo.orientation) if view.orientation == 1 else 1, mask.orientation]
    if mask.orientation == photo.orientation:
        turns.insert(0, view.orientation)
    for turn in turns:
        mask_width, mask_height = turned_size(mask.size, turn)
        if abs(mask_width * height / (mask_height * width) - 1.0) <= _ASPECT_SHARE:
            return turn, (width, height) != (mask_width, mask_height)
    message = f"{path} is {mask.size[0]}x{mask.size[1]} px, but its photo {view.image_path} is {width}x{height} px"
    remedy = "make a mask of the photo's aspect ratio, or remove the mask from its folder"
    raise FileFault(f"{message}: {remedy}.", file=path, kind="mask size")
