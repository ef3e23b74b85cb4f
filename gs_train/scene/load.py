"""From a folder to a ``Scene``: finds the model, matches it with the photos, sets the training size, splits, measures the extent.

Not here: the file formats (``colmap.py``, ``transforms.py``), decoding (``images.py``). The invariant: a scene that is returned can be
trained on as it is; all that could be known to be wrong without decoding an image has been refused with a ``UserError``.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.distortion import is_pinhole
from gs_train.cameras.undistort import WIDEST_DEG, FoldedLensError, Undistort, pinhole_for
from gs_train.errors import UserError, first_few
from gs_train.scene.photos.decode import image_size
from gs_train.scene.photos.masks import with_masks
from gs_train.scene.readers.colmap import MODEL_FOLDERS, ColmapCamera, ColmapImage, ColmapModel, find_model, read_model
from gs_train.scene.readers.transforms import TRANSFORMS_FILES, find_transforms, read_blender, read_transforms
from gs_train.scene.types import AlphaUse, Lens, PointCloud, Scene, View

P = ParamSpec("P")
Result = TypeVar("Result")

_AUTO_WIDTH_PX = 1600
_ROUNDING_PX = 1.0
_FEWEST_TRAINING_VIEWS = 2
# The side of SSIM's window: a smaller view could be trained on, but never be evaluated.
_SMALLEST_SIDE_PX = 11
# Beyond these no lens is left, only a damaged model: the focal length over the larger side, and image sizes from the image to the centre.
_FOCAL_PER_SIDE = (1e-3, 1e3)
_CENTRE_OUTSIDE = 10


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What to make of a scene folder."""

    images: str = "images"
    """Folder of the photos, inside the scene folder."""
    masks: str = "masks"
    """Folder of masks, inside the scene folder, used when it is there: each is named like its photo; its black pixels do not count."""
    alpha: AlphaUse = "composite"
    """What to do with photos that have alpha: composite lays them over --background, mask lets each pixel count by it, ignore drops it."""
    resolution: Literal[-1, 1, 2, 4, 8] = -1
    """Train at 1/N of the photos' size; -1 keeps the size up to a width of 1600 px and resizes wider photos to 1600 px."""
    test_every: int = 8
    """Hold out every Nth photo by sorted name, from the first on, as a test view, where the scene itself has no split; 0 trains on all."""
    skip_missing: bool = False
    """Go on without the photos that the scene lists and that are not on disk."""
    allow_outside: bool = False
    """Take photos and points from outside the scene folder, where a transforms.json names them there."""
    undistort: Undistort = "crop"
    """How to take lens distortion out: crop keeps what fills a rectangle, full all of the photo; what is empty beside it does not count."""

    def __post_init__(self) -> None:
        """Refuse values that no flag may take."""
        if not self.images:
            raise UserError("--images is empty: name the folder of the photos, such as images.")
        if not self.masks:
            raise UserError("--masks is empty: name the folder of the masks, such as masks.")
        if self.alpha not in get_args(AlphaUse):
            raise UserError(f"--alpha is {self.alpha}: give {', '.join(get_args(AlphaUse))}.")
        if self.resolution not in (-1, 1, 2, 4, 8):
            raise UserError(f"--resolution is {self.resolution}: give 1, 2, 4, 8 or -1.")
        if self.test_every < 0:
            raise UserError(f"--test-every is {self.test_every}: give 0 (train on all photos) or a positive number.")
        if self.undistort not in get_args(Undistort):
            raise UserError(f"--undistort is {self.undistort}: give {' or '.join(get_args(Undistort))}.")


def _raise(fault: UserError) -> None:
    raise fault


def load_scene(path: Path, config: SceneConfig, on_fault: Callable[[UserError], None] = _raise) -> Scene:
    """Read the scene in ``path``; opens the photos' headers, decodes none, but the masks.

    Args:
        path: folder that holds the photos and a COLMAP model, transforms.json or transforms_train.json; or a file like the latter two,
            beside its photos.
        config: see ``SceneConfig``.
        on_fault: takes what would keep the scene from being trained on. If it returns, the scene is read on without what is at fault, so
            that all faults can be told and not the first one alone; the scene that comes back is then not fit for training.

    Raises:
        UserError: what there is no reading on after; and by the default ``on_fault`` any fault.
    """
    model = _find_and_read(path, config)
    for camera_id in sorted({image.camera_id for image in model.images}):
        _attempt(on_fault, _refuse_absurd, model.cameras_path, camera_id, model.cameras[camera_id])
    folder = path.parent if path.is_file() else path
    photos = _find_photos(folder, config, model, on_fault)
    found = [_attempt(on_fault, _view, photos, image, model, config) for image in photos.images]
    views = tuple(view for view in found if view is not None)
    count = len(views)
    views, mask_notices = _attempt(on_fault, _masked, views, folder, config, on_fault) or (views, [])
    for view in views:
        _attempt(on_fault, _refuse_tiny, view, config.resolution)
    train, test = _split(views, config.test_every, model.test_names, path, hidden=count - len(views))
    points, point_notices = _finite_points(model.points)
    return Scene(
        path=path,
        train_views=train,
        test_views=test,
        points=points,
        extent=scene_extent(train, points),
        notices=(*model.notices, *photos.notices, *_narrowed(views, config.undistort), *mask_notices, *point_notices),
    )


def _attempt(
    on_fault: Callable[[UserError], None], function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
) -> Result | None:
    """``function`` of the arguments; None after a fault that ``on_fault`` has taken."""
    try:
        return function(*args, **kwargs)
    except UserError as fault:
        on_fault(fault)
        return None


def camera_centres(views: Sequence[View]) -> NDArray[np.float64]:
    """[V, 3] positions of the cameras, world units."""
    return np.array([-view.world_to_camera[:3, :3].T @ view.world_to_camera[:3, 3] for view in views]).reshape(-1, 3)


def scene_extent(views: Sequence[View], points: PointCloud) -> float:
    """1.1 x the largest distance of the views' centres from their mean (original: cameras_extent), world units, > 0.

    Cameras that only turn on the spot span nothing. Then the extent is 1.1 x the median distance of the points from that spot, and 1.0
    where there are no points either.
    """
    centres = camera_centres(views)
    middle = centres.mean(axis=0)
    radius = float(np.linalg.norm(centres - middle, axis=1).max())
    if radius <= 1e-9 * max(1.0, float(np.abs(middle).max())):
        radius = float(np.median(np.linalg.norm(points.xyz - middle, axis=1))) if len(points.xyz) else 0.0
        if radius <= 0.0:
            return 1.0
    return 1.1 * radius


def _find_and_read(path: Path, config: SceneConfig) -> ColmapModel:
    try:
        exists, is_file = path.exists(), path.is_file()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give a scene folder, or check its permissions."
        ) from error
    if not exists:
        raise UserError(f"{path} does not exist: give a scene folder, or write one with `gs-train sample DIR`.")
    model = _read_file(path, config) if is_file else _read_folder(path, config)
    if not model.images:
        raise UserError(
            f"{model.images_path} registers no images: run the reconstruction again, or choose another of its models."
        )
    return model


def _read_file(path: Path, config: SceneConfig) -> ColmapModel:
    if path.suffix != ".json":
        raise UserError(
            f"{path} is a file: give the scene folder that holds the photos and their cameras, or a transforms .json file."
        )
    return read_transforms(path, allow_outside=config.allow_outside)


def _read_folder(path: Path, config: SceneConfig) -> ColmapModel:
    """A COLMAP model before transforms.json before Blender's files: where a scene has several, the first is the one with points."""
    folder = find_model(path)
    if folder is not None:
        return read_model(folder)
    file = find_transforms(path)
    if file is None:
        looked_for = f"looked for cameras and images (.bin or .txt) in {', '.join(MODEL_FOLDERS)}, and for {' and '.join(TRANSFORMS_FILES)}"
        raise UserError(
            f"{path} is not a scene ({looked_for}): give the folder that holds images/ and sparse/, or a transforms file."
        )
    if file.name == "transforms_train.json":
        return read_blender(path, allow_outside=config.allow_outside)
    return read_transforms(file, allow_outside=config.allow_outside)


def _refuse_absurd(file: Path, camera_id: int, camera: ColmapCamera) -> None:
    """Refuse intrinsics that are numbers and no lens: they would train to black images without a word."""
    fx, fy, cx, cy = camera.focal_and_centre()
    lowest, highest = (bound * max(camera.width, camera.height) for bound in _FOCAL_PER_SIDE)
    near = all(
        -_CENTRE_OUTSIDE * side <= c <= (1 + _CENTRE_OUTSIDE) * side
        for c, side in ((cx, camera.width), (cy, camera.height))
    )
    if not (lowest <= min(fx, fy) and max(fx, fy) <= highest and near):
        message = f"{file}: camera {camera_id} of {camera.width}x{camera.height} px cannot have the focal length {fx:g}, {fy:g} px"
        raise UserError(
            f"{message} and the principal point {cx:g}, {cy:g} px: export the model again, or run the reconstruction again."
        )


# ---- photos on disk


@dataclass(frozen=True, kw_only=True)
class _Photos:
    """Which images to use, from which folder."""

    folder: Path
    reduced: bool
    """The folder holds the photos at the training size already."""
    images: tuple[ColmapImage, ...]
    """Sorted by name, all of them on disk."""
    notices: tuple[str, ...] = ()


def _find_photos(path: Path, config: SceneConfig, model: ColmapModel, on_fault: Callable[[UserError], None]) -> _Photos:
    images = tuple(sorted(model.images, key=lambda image: image.name))
    notices: list[str] = []
    if model.names_from_scene and config.images != SceneConfig.images:
        raise UserError(
            f"--images {config.images} does not go with {model.images_path}, which says itself where its photos are: leave it out."
        )
    reduced = path / f"{config.images}_{config.resolution}"
    if config.resolution in (2, 4, 8) and reduced.is_dir() and not model.names_from_scene:
        misfit = _first_misfit(reduced, config.resolution, model, images)
        if misfit is None:
            return _Photos(folder=reduced, reduced=True, images=images)
        notices.append(f"{reduced} is not used, because {misfit}: the photos in {config.images} are resized instead.")
    folder = path if model.names_from_scene else path / config.images
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist: put the photos there, or name their folder with `gs-train train --images`."
        )
    missing = [image.name for image in images if not _on_disk(folder / image.name)]
    if missing:
        message = f"{len(missing)} of {len(images)} images that {model.images_path} lists are not in {folder} ({first_few(missing)})"
        if not config.skip_missing:
            on_fault(
                UserError(f"{message}: copy them there, or train without them with `gs-train train --skip-missing`.")
            )
        else:
            notices.append(f"{message}: going on without them.")
        gone = set(missing)
        images = tuple(image for image in images if image.name not in gone)
    return _Photos(folder=folder, reduced=False, images=images, notices=tuple(notices))


def _on_disk(file: Path) -> bool:
    """Is there such a file? A name that is too long for the disk cannot be there."""
    try:
        return file.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise UserError(f"{file} cannot be read ({error.strerror}): check its permissions and the disk.") from error


def _first_misfit(folder: Path, factor: int, model: ColmapModel, images: Sequence[ColmapImage]) -> str | None:
    """Why ``folder`` is not a copy of the photos at 1/factor of their size; None where it is one."""
    for image in images:
        file = folder / image.name
        if not _on_disk(file):
            return f"it has no {image.name}"
        size = image_size(file)
        if not _fits(size, model.cameras[image.camera_id], factor):
            return f"{image.name} is {size[0]}x{size[1]} there"
    return None


def _fits(size: tuple[int, int], camera: ColmapCamera, factor: int) -> bool:
    """Is ``size`` the camera's size over ``factor``, however that was rounded?"""
    return (
        abs(size[0] - camera.width / factor) <= _ROUNDING_PX and abs(size[1] - camera.height / factor) <= _ROUNDING_PX
    )


def _masked(
    views: tuple[View, ...], path: Path, config: SceneConfig, on_fault: Callable[[UserError], None]
) -> tuple[tuple[View, ...], list[str]]:
    folder = path / config.masks
    if folder.is_dir():
        return with_masks(views, folder, on_fault)
    if config.masks != SceneConfig.masks:
        raise UserError(
            f"{folder} does not exist: put the masks there, or name their folder with `gs-train train --masks`."
        )
    return views, []


# ---- views


def _view(photos: _Photos, image: ColmapImage, model: ColmapModel, config: SceneConfig) -> View:
    file = photos.folder / image.name
    source = model.cameras[image.camera_id]
    size = image_size(file)
    # `--images images_4` names photos at a quarter of the size that the model was made at, and so says that they are.
    suffix = re.search(r"_([248])$", photos.folder.name)
    if not _fits(size, source, 1) and not (suffix and _fits(size, source, int(suffix[1]))):
        message = (
            f"{file} is {size[0]}x{size[1]} px and its camera in {model.cameras_path} is {source.width}x{source.height}"
        )
        raise UserError(
            f"{message}: use the photos that the model was made from (`gs-train train --images` names another folder)."
        )
    lens = _lens(source).resized(*(size if photos.reduced else _training_size(size, config.resolution)))
    try:
        camera = pinhole_for(lens, config.undistort).camera
    except FoldedLensError:
        message = f"{model.cameras_path}: the distortion {lens.distortion} of camera {image.camera_id} ({lens.model}) cannot be inverted over"
        raise UserError(
            f"{message} its {source.width}x{source.height} px: run the reconstruction again, with another camera model if need be."
        ) from None
    return View(
        name=image.name,
        image_path=file,
        camera=camera,
        world_to_camera=image.world_to_camera,
        lens=None if is_pinhole(lens) else lens,
        alpha=config.alpha,
        point_ids=image.point_ids,
    )


def _training_size(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """(width, height) in px at which a photo of ``size`` is trained; the rule for -1 is the original's."""
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
        raise UserError(
            f"{message}, and each side takes at least {_SMALLEST_SIDE_PX}: train with --resolution 1, or on larger photos."
        )


def _lens(source: ColmapCamera) -> Lens:
    fx, fy, cx, cy = source.focal_and_centre()
    size = {"width": source.width, "height": source.height}
    return Lens(model=source.model, **size, fx=fx, fy=fy, cx=cx, cy=cy, distortion=source.distortion())


def _narrowed(views: Sequence[View], undistort: Undistort) -> list[str]:
    """What to say of photos that see more than a pinhole camera may."""
    count = sum(view.lens is not None and pinhole_for(view.lens, undistort).narrowed for view in views)
    if not count:
        return []
    return [
        f"{count} of {len(views)} photos see more than {WIDEST_DEG:g} degrees across: they are undistorted and cropped to that."
    ]


def _split(
    views: tuple[View, ...], test_every: int, test_names: frozenset[str] | None, path: Path, *, hidden: int
) -> tuple[tuple[View, ...], tuple[View, ...]]:
    """Training and test views; the test views are those that the scene names, else those at 0, N, 2N ... of the sorted names.

    ``hidden`` views are not among them, because of their masks.
    """
    if test_names is None or test_every == 0:
        test_names = frozenset(view.name for view in views[::test_every]) if test_every else frozenset()
        split = f"--test-every {test_every}"
    else:
        split = "its own split"
    test = tuple(view for view in views if view.name in test_names)
    train = tuple(view for view in views if view.name not in test_names)
    if len(train) < _FEWEST_TRAINING_VIEWS:
        message = f"{path} leaves {len(train)} of its {len(views) + hidden} views to train on with {split}"
        masks = f" and {hidden} masks that hide all of their photos (what is black does not count)" if hidden else ""
        remedy = f"{'mend the masks, ' if hidden else ''}add photos, or train with --test-every 0"
        raise UserError(f"{message}{masks}, and training takes at least {_FEWEST_TRAINING_VIEWS}: {remedy}.")
    return train, test


# ---- points


def _finite_points(points: PointCloud) -> tuple[PointCloud, list[str]]:
    """The points that are finite as float32, the precision of training, and what to say of the others."""
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
        notices.append("The scene has no points: random initialisation.")
    return points, notices
