"""Finds the masks of a scene's photos and checks them: a mask is an image whose black pixels take no part in training and measuring.

Not here: laying a mask over its photo (``images.py``). The invariant: a view that is handed back with a mask has one of its own shape, in
which something is left to see.
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
    """The views with their masks, without those that their mask hides as a whole, and what to say of it.

    ``a/b.jpg`` is masked by ``a/b.jpg.png`` (COLMAP's way) or else ``a/b.png``, of any ending that Pillow knows. Where all names begin
    with one folder, as those of a transforms.json do, that may be left out.

    Args:
        views: at their training size.
        folder: is there.
        on_fault: takes what is wrong with a mask: it cannot be decoded, or has another aspect ratio than its photo. If it returns, that
            mask is left out.
    """
    # What labelled the masks may have left notes of the same names beside them.
    endings = Image.registered_extensions()
    # Sorted, so that of two masks for one photo it is always the same one.
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in endings and file.is_file())
    masks = {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
    firsts = {PurePosixPath(view.name).parts[0] for view in views}
    shared = f"{firsts.pop()}/" if len(firsts) == 1 else ""
    found = [replace(view, mask_path=_mask_of(view.name, shared, masks)) for view in views]
    masked = [view for view in found if view.mask_path is not None]
    resized, hidden, faulty = 0, set(), set()
    for view, examined in zip(masked, for_each(_examined, masked), strict=True):
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
            f"{len(hidden)} photos are left out, because their masks hide all of them ({first_few(sorted(hidden))})."
        )
    kept = (replace(view, mask_path=None) if view.name in faulty else view for view in found if view.name not in hidden)
    return tuple(kept), notices


def _mask_of(name: str, shared: str, masks: dict[str, Path]) -> Path | None:
    """The mask of the image ``name``, by the masks' paths without their last ending."""
    names = (name, name.removeprefix(shared))
    keys = (key for each in names for key in (each, PurePosixPath(each).with_suffix("").as_posix()))
    return next((masks[key] for key in keys if key in masks), None)


def _examined(view: View) -> tuple[bool, bool] | UserError:
    """Whether the mask has another size than its photo, and whether it hides all of it; or what is wrong with it."""
    try:
        hides = _hides_all(view)  # First, because it decodes the mask, and says of what fails there that it is a mask.
        return _check_shape(view), hides
    except UserError as fault:
        return fault


def _check_shape(view: View) -> bool:
    """Whether the mask has another size than its photo; its shape must be the same."""
    assert view.mask_path is not None
    (width, height), (mask_width, mask_height) = image_size(view.image_path), image_size(view.mask_path)
    if abs(mask_width * height / (mask_height * width) - 1.0) > _ASPECT_SHARE:
        message = f"{view.mask_path} is {mask_width}x{mask_height} px and its photo {view.image_path} {width}x{height}"
        raise UserError(f"{message}: make the mask in the photo's shape, or take it out of its folder.")
    return (width, height) != (mask_width, mask_height)


def _hides_all(view: View) -> bool:
    assert view.mask_path is not None
    return not decode_mask(view.mask_path).any()
