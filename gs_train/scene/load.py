"""From a path to a ``Scene``: reads the cameras, finds the photos, sets the training size, splits the views.

The file formats are in ``readers/``, the decoding of photos in ``photos/decode.py``. A scene that ``load_scene``
returns can be trained as it is: every fault that shows without decoding a photo has become a ``UserError``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import numpy as np

from gs_train.cameras.camera import Camera
from gs_train.cameras.undistort import WIDEST_DEG, FoldedLensError, Undistort, is_narrowed, pinhole_for
from gs_train.errors import UserError
from gs_train.options import INPUT, MOST_USED, check, setting
from gs_train.scene.choose import ChosenModel, choose_model
from gs_train.scene.extent import far_photos, scene_extent
from gs_train.scene.part import read_part
from gs_train.scene.photos.find import folder_alike
from gs_train.scene.photos.fit import Photo, fit_photos
from gs_train.scene.photos.locate import locate_photos
from gs_train.scene.photos.masks import with_masks
from gs_train.scene.readers.reconstruction import Reconstruction
from gs_train.scene.split import read_test_names, split_views
from gs_train.scene.types import AlphaUse, PointCloud, Scene, View

P = ParamSpec("P")
Result = TypeVar("Result")

_AUTO_WIDTH_PX = 1600
# The side of SSIM's window: a smaller view can be trained, but not evaluated.
_SMALLEST_SIDE_PX = 11
# No lens exceeds these limits, only a damaged model: focal length over the larger side, and principal point outside the
# image in image sizes.
_FOCAL_PER_SIDE = (1e-3, 1e3)
_CENTRE_OUTSIDE = 10


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """How to read a scene. The docstrings of the fields are the help texts of the flags."""

    images: str = setting("images", group=INPUT)
    """Folder of the photos inside the scene folder. Change it if the photos lie elsewhere, for example images_4."""
    model: str = setting("", group=INPUT)
    """The model to use, if the scene folder holds several: its path inside the folder, for example sparse/1 or
    transforms.json. Without it, the model that registers the most photos is used."""
    masks: str = setting("masks", group=INPUT)
    """Folder of masks inside the scene folder, used if it exists. A mask has its photo's name, and black pixels do not
    count in training and evaluation."""
    invert_masks: bool = setting(False, group=INPUT)
    """Swap black and white in all masks. Set it if white pixels of your masks mark the parts to leave out."""
    alpha: AlphaUse = setting("composite", group=INPUT)
    """How to use the alpha channel of photos: composite blends them over --background, mask weights each pixel by
    alpha, ignore drops alpha. Use mask to leave out the background of cut-out photos."""
    resolution: Literal[-1, 1, 2, 4, 8] = setting(-1, group=MOST_USED)
    """Train at 1/N of the photos' size; -1 resizes photos wider than 1600 px to 1600 px. Typically 2 or 4 for a faster
    training or less memory, 1 for full detail."""
    test_every: int = setting(8, group=MOST_USED, at_least=0)
    """Hold out every Nth photo by sorted name as a test view, unless the scene has its own split. 0 trains on all
    photos, for the best splat without an evaluation."""
    test_list: str = setting("", group=INPUT)
    """File with the names of the test views, one in each line, in place of --test-every; the run keeps a copy. A scene
    folder may hold such a test_list.txt, or a train_list.txt, itself."""
    skip_missing: bool = setting(False, group=INPUT)
    """Train without the photos that the scene lists but the disk lacks. Set it after photos were deleted on purpose."""
    allow_outside: bool = setting(False, group=INPUT)
    """Allow photos and points outside the scene folder. Set it if a transforms.json that you trust names files
    elsewhere."""
    ignore_pose_check: bool = setting(False, group=INPUT)
    """Train even if the photos do not see the points where the poses put them. Set it if the points are known to lie
    outside the photos or to have false colours."""
    undistort: Undistort = setting("crop", group=INPUT)
    """How to remove lens distortion: crop keeps the largest rectangle without empty pixels, full keeps the whole photo
    with empty pixels that do not count. Use full for wide lenses, whose edges crop would lose."""

    def __post_init__(self) -> None:
        """Raise UserError, naming the flag, for a value outside its range."""
        if not self.images:
            raise UserError("--images is empty: name the folder of the photos, such as images.")
        if not self.masks:
            raise UserError("--masks is empty: name the folder of the masks, such as masks.")
        check(self)


def _raise(fault: UserError) -> None:
    raise fault


def load_scene(
    path: Path | str, config: SceneConfig | None = None, on_fault: Callable[[UserError], None] = _raise
) -> Scene:
    """Read the scene in ``path``. Opens the headers of the photos, and decodes the masks.

    It decodes only a few photos, to compare their colours with the points', and photos with one channel of more than 8
    bits, to find the value that becomes white.

    Args:
        path: folder that holds the photos and a COLMAP model, transforms.json or transforms_train.json; or a .json file
            of the latter two formats, beside its photos; or the folder of a block.
        config: see ``SceneConfig``; None for the defaults.
        on_fault: takes each fault that would stop training. If it returns, loading continues without the faulty part,
            so that a caller can collect all faults. The scene is then not fit for training.

    Raises:
        UserError: a fault after which loading cannot continue, and, with the default ``on_fault``, any fault.
    """
    path, config = Path(path), SceneConfig() if config is None else config
    part = read_part(path)
    if part is not None:
        return part.cut(path, load_scene(part.scene, config, on_fault))
    chosen = _find_and_read(path, config)
    model, folder = chosen.model, chosen.folder
    for camera_id in sorted({image.camera_id for image in model.images}):
        _attempt(on_fault, _refuse_absurd, model.cameras_path, camera_id, model.cameras[camera_id])
    photos = locate_photos(
        folder, config.images, config.resolution, model, skip_missing=config.skip_missing, on_fault=on_fault
    )
    fitting, photo_notices = fit_photos(photos.files, photos.folder, model, config.images, on_fault)
    found = [_attempt(on_fault, _view, photo, photos.reduced, model, config) for photo in fitting]
    views = tuple(view for view in found if view is not None)
    count = len(views)
    views, mask_notices = _attempt(on_fault, _masked, views, (folder, path), model, config, on_fault) or (views, [])
    for view in views:
        _attempt(on_fault, _refuse_tiny, view, config.resolution)
    named = read_test_names(views, config.test_list, folder, model.test_names)
    train, test = split_views(views, config.test_every, named, path, hidden=count - len(views))
    points, point_notices = _finite_points(model.points)
    return Scene(
        path=path,
        train_views=train,
        test_views=test,
        points=points,
        extent=scene_extent(train, points),
        notices=(
            *chosen.notices,
            *model.notices,
            *photos.notices,
            *photo_notices,
            *far_photos(views),
            *_narrowed(views, config.undistort),
            *mask_notices,
            *point_notices,
        ),
    )


def _attempt(
    on_fault: Callable[[UserError], None], function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
) -> Result | None:
    """Call ``function``; hand a UserError to ``on_fault`` and return None."""
    try:
        return function(*args, **kwargs)
    except UserError as fault:
        on_fault(fault)
        return None


def _find_and_read(path: Path, config: SceneConfig) -> ChosenModel:
    try:
        exists = path.exists()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give a scene folder, or check its permissions."
        ) from error
    if not exists:
        raise UserError(f"{path} does not exist: give a scene folder, or write one with `gs-train sample DIR`.")
    return choose_model(path, config.model, config.images, allow_outside=config.allow_outside)


def _refuse_absurd(file: Path, camera_id: int, camera: Camera) -> None:
    """Refuse intrinsics of no real lens, because they would train to black images without an error."""
    lowest, highest = (bound * max(camera.width, camera.height) for bound in _FOCAL_PER_SIDE)
    near = all(
        -_CENTRE_OUTSIDE * side <= c <= (1 + _CENTRE_OUTSIDE) * side
        for c, side in ((camera.cx, camera.width), (camera.cy, camera.height))
    )
    if not (lowest <= min(camera.fx, camera.fy) and max(camera.fx, camera.fy) <= highest and near):
        named = f"{file}: camera {camera_id} of {camera.width}x{camera.height} px"
        focal, centre = f"{camera.fx:g}, {camera.fy:g}", f"{camera.cx:g}, {camera.cy:g}"
        message = f"{named} has the focal length {focal} px and the principal point {centre} px, which no lens has"
        raise UserError(f"{message}: export the model again, or run the reconstruction again.")


def _masked(
    views: tuple[View, ...],
    folders: Sequence[Path],
    model: Reconstruction,
    config: SceneConfig,
    on_fault: Callable[[UserError], None],
) -> tuple[tuple[View, ...], list[str]]:
    places = [folder_alike(folder, config.masks) for folder in folders]
    folder = next((place for place in places if place.is_dir()), places[0])
    named: dict[str, Path] = {}
    if config.masks == SceneConfig.masks:
        named = {image.name: image.mask for image in model.images if image.mask is not None}
    elif not folder.is_dir():
        raise UserError(
            f"{folder} does not exist: put the masks there, or name their folder with `gs-train train --masks`."
        )
    return with_masks(views, folder if folder.is_dir() else None, named, invert=config.invert_masks, on_fault=on_fault)


# ---- views


def _view(photo: Photo, reduced: bool, model: Reconstruction, config: SceneConfig) -> View:
    """The view of a photo. ``reduced`` says that the file has the training size."""
    image = photo.image
    camera = model.cameras[image.camera_id]
    resized = camera.resized(*(photo.size if reduced else _training_size(photo.size, config.resolution)))
    try:
        pinhole = pinhole_for(resized, config.undistort)
    except FoldedLensError:
        named = f"the distortion {camera.distortion} of camera {image.camera_id} ({camera.model})"
        message = f"{model.cameras_path}: {named} cannot be inverted over its {camera.width}x{camera.height} px"
        raise UserError(f"{message}: run the reconstruction again, possibly with another camera model.") from None
    return View(
        name=image.name,
        image_path=photo.file,
        camera=pinhole,
        world_to_camera=image.world_to_camera,
        distorted_camera=None if resized.is_pinhole() else resized,
        orientation=photo.orientation,
        white=photo.white,
        alpha=config.alpha,
        point_ids=image.point_ids,
    )


def _training_size(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """(width, height) in px for training on a photo of ``size``. The rule for -1 is the original's."""
    width, height = size
    if resolution == -1:
        if width <= _AUTO_WIDTH_PX:
            return size
        return _AUTO_WIDTH_PX, max(1, round(height * _AUTO_WIDTH_PX / width))
    return max(1, round(width / resolution)), max(1, round(height / resolution))


def _refuse_tiny(view: View, resolution: int) -> None:
    width, height = view.camera.width, view.camera.height
    if min(width, height) < _SMALLEST_SIDE_PX:
        message = f"{view.image_path} would be trained at {width}x{height} px with --resolution {resolution}"
        least = f"but each side needs at least {_SMALLEST_SIDE_PX} px"
        raise UserError(f"{message}, {least}: train with --resolution 1, or on larger photos.")


def _narrowed(views: Sequence[View], undistort: Undistort) -> list[str]:
    """A notice about photos that see more than a pinhole camera may."""
    cameras = [view.distorted_camera for view in views if view.distorted_camera is not None]
    count = sum(is_narrowed(camera, undistort) for camera in cameras)
    if not count:
        return []
    message = f"{count} of {len(views)} photos see more than {WIDEST_DEG:g} degrees across"
    return [f"{message}: undistortion crops them to that."]


# ---- points


def _finite_points(points: PointCloud) -> tuple[PointCloud, list[str]]:
    """The points that are finite as float32, the precision of training, and notices about the others."""
    notices = []
    with np.errstate(over="ignore"):
        finite = np.asarray(np.isfinite(points.xyz.astype(np.float32)).all(axis=1))
    dropped = int(np.count_nonzero(~finite))
    if dropped:
        notices.append(f"{dropped} of {len(points.xyz)} points are NaN or infinite: dropped.")
        points = replace(
            points,
            xyz=points.xyz[finite],
            rgb=points.rgb[finite],
            ids=None if points.ids is None else points.ids[finite],
        )
    if len(points.xyz) == 0:
        notices.append("The scene has no points: a training makes points from the photos.")
    return points, notices
