"""Finds and checks the masks of a scene's photos. Black pixels of a mask do not count in training and evaluation.

``decode.py`` applies a mask to its photo. A mask that this module assigns has its photo's aspect ratio and leaves some
of it visible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from PIL import Image

from gs_train.errors import UserError, first_few
from gs_train.scene.photos.decode import decode_mask, for_each, image_size
from gs_train.scene.types import View

_ASPECT_SHARE = 0.01


def with_masks(
    views: Sequence[View], folder: Path, on_fault: Callable[[UserError], None]
) -> tuple[tuple[View, ...], list[str]]:
    """Assign each view its mask.

    The mask of ``a/b.jpg`` is ``a/b.jpg.png`` (COLMAP's convention) or else ``a/b.png``, with any ending that Pillow
    knows. If all image names begin with the same folder, as in a transforms.json, masks may leave it out.

    Args:
        views: at their training size.
        folder: an existing folder of masks.
        on_fault: takes the fault of a mask: it cannot be decoded, or its aspect ratio differs from the photo's. If
            ``on_fault`` returns, the view has no mask.

    Returns:
        The views, except views that their mask hides completely, and notices for the user.
    """
    # Annotation tools leave other files with the same names beside the masks.
    endings = Image.registered_extensions()
    # Sorted, so that one of two masks for the same photo always wins.
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in endings and file.is_file())
    masks = {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
    firsts = {PurePosixPath(view.name).parts[0] for view in views}
    shared = f"{firsts.pop()}/" if len(firsts) == 1 else ""
    found = [replace(view, mask_path=_mask_of(view.name, shared, masks)) for view in views]
    masked = [view for view in found if view.mask_path is not None]
    resized, hidden, faulty = 0, set(), set()
    for view, examined in zip(masked, for_each(_examine, masked), strict=True):
        if isinstance(examined, UserError):
            on_fault(examined)
            faulty.add(view.name)
            continue
        resized += examined[0]
        if examined[1]:
            hidden.add(view.name)
    notices = [f"{len(masked)} of {len(views)} photos have a mask in {folder}."]
    if resized:
        notices.append(f"{resized} of the masks differ in size from their photos: resized.")
    if hidden:
        notices.append(
            f"{len(hidden)} photos are left out, because masks hide them completely ({first_few(sorted(hidden))})."
        )
    kept = (replace(view, mask_path=None) if view.name in faulty else view for view in found if view.name not in hidden)
    return tuple(kept), notices


def _mask_of(name: str, shared: str, masks: dict[str, Path]) -> Path | None:
    """The mask of image ``name``; None without one.

    Args:
        name: the image name.
        shared: a prefix of the image name that the mask's path may lack.
        masks: mask files by their path in the masks folder without the last ending.
    """
    names = (name, name.removeprefix(shared))
    keys = (key for each in names for key in (each, PurePosixPath(each).with_suffix("").as_posix()))
    return next((masks[key] for key in keys if key in masks), None)


def _examine(view: View) -> tuple[bool, bool] | UserError:
    """Whether the mask's size differs from the photo's, and whether it hides the whole photo; or the mask's fault."""
    try:
        # This call comes first, because it decodes the mask and its errors name the mask.
        hides = _hides_all(view)
        return _differs_in_size(view), hides
    except UserError as fault:
        return fault


def _differs_in_size(view: View) -> bool:
    """Whether the mask's size differs from the photo's.

    Raises:
        UserError: the aspect ratio differs.
    """
    assert view.mask_path is not None
    (width, height), (mask_width, mask_height) = image_size(view.image_path), image_size(view.mask_path)
    if abs(mask_width * height / (mask_height * width) - 1.0) > _ASPECT_SHARE:
        message = (
            f"{view.mask_path} is {mask_width}x{mask_height} px, but its photo {view.image_path} is {width}x{height} px"
        )
        raise UserError(f"{message}: make a mask of the photo's aspect ratio, or remove the mask from its folder.")
    return (width, height) != (mask_width, mask_height)


def _hides_all(view: View) -> bool:
    assert view.mask_path is not None
    return not decode_mask(view.mask_path).any()
