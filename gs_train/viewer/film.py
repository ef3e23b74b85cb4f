"""Films of a splat: the shots of a camera path, and their pictures. All shots are in the coordinates of the splat.

The geometry of the paths is in ``paths.py``; ``video.py`` writes the frames.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from gs_train.cameras.camera import Camera
from gs_train.cameras.poses import camera_centre
from gs_train.errors import UserError
from gs_train.formats.html import default_page
from gs_train.formats.splat_data import SplatData
from gs_train.model.gaussians import GaussianModel
from gs_train.render.select import Selection
from gs_train.run.open import OpenedSplat
from gs_train.scene.frame import Frame
from gs_train.viewer import paths
from gs_train.viewer.shots import Shot, eyes_and_turns, shots_of_run

What = Literal["colour", "depth", "alpha"]
_DEFAULT_SIZE = (960, 640)
_DEFAULT_FOV_DEG = 50.0
_FPS, _STILLS_FPS = 30.0, 2.0
_SECONDS = 5.0
_NEAR_SHARE, _MANY = 0.05, 30
"""A camera nearer than this share of the focus distance to this many opaque Gaussians is inside matter."""
_SAMPLED_SHOTS = 10
_LEAST_ALPHA = 0.5
"""Depth maps have no depth where the splat is more transparent."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Film:
    """A camera path in time."""

    shots: tuple[Shot, ...]
    """One per frame."""
    fps: float
    """Frames per second."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """The splat of a film."""

    opened: OpenedSplat
    """Its source."""
    data: SplatData
    """The finite Gaussians, at least one, in the coordinates of ``opened.frame``."""

    @classmethod
    def of(cls, opened: OpenedSplat) -> Subject:
        """The splat that was opened; raises UserError if it has no finite Gaussians."""
        data = opened.splat(opened.frame)
        data = data.keep(data.is_finite())
        if len(data) == 0:
            raise UserError(f"{opened.path} has no Gaussians without NaN or infinite values: name another splat.")
        return cls(opened=opened, data=data)

    @property
    def files(self) -> Frame:
        """The coordinates of cameras.json, of camera tracks and of the splat file."""
        return self.opened.frame if self.opened.checkpoint is None else self.opened.frame.of_files

    def moved(self, shot: Shot) -> Shot:
        """A shot in the coordinates of ``files``, moved to the coordinates of the splat."""
        pose = self.opened.frame.pose_to_training(self.files.pose_to_scene(shot.world_to_camera))
        return replace(shot, world_to_camera=pose)

    def opaque_points(self) -> NDArray[np.float64]:
        """[P, 3] centres of the Gaussians with an opacity above 0.5, or of all if there are none."""
        opaque = self.data.opacity.ravel() > 0  # The stored opacity is a logit.
        return np.asarray(self.data.xyz[opaque] if opaque.any() else self.data.xyz, np.float64)


def film_of(
    subject: Subject,
    path: str,
    *,
    fps: float | None = None,
    seconds: float | None = None,
    scene: Path | None = None,
    notify: Callable[[str], None],
) -> Film:
    """The film of a camera path.

    Args:
        subject: the splat.
        path: auto, test, train, orbit, spiral, interpolate, or the name of a .json file.
        fps: frames per second; None for the default of the path.
        seconds: length of the film; None for the default. Paths with one frame per camera have a fixed length.
        scene: the scene, if it has moved since the training.
        notify: takes notes for the user.

    Raises:
        UserError: the path has fewer than two cameras, the cameras are unknown, or the .json file is damaged.
    """
    if path.endswith(".json"):
        photos = shots_of_run(subject.opened)
        size = _DEFAULT_SIZE if photos is None else (photos[0].camera.width, photos[0].camera.height)
        shots, rate = read_track(Path(path), *size)
        return Film(shots=tuple(map(subject.moved, shots)), fps=fps or rate or _FPS)
    if path in ("test", "train"):
        return Film(shots=_split_shots(subject.opened, path, scene, notify), fps=fps or _STILLS_FPS)
    rate = fps or _FPS
    count = max(2, round(rate * (seconds or _SECONDS)))
    photos = _photo_shots(subject, scene, notify)
    shots = _around(subject, path, count) if photos is None else _along(subject, photos, path, count, notify)
    _warn_of_matter(subject, shots, notify)
    return Film(shots=shots, fps=rate)


def read_track(path: Path, width: int, height: int) -> tuple[tuple[Shot, ...], float | None]:
    """The shots of a camera track, and its frame rate if it has one.

    The file holds {frameRate, frames: [{position, target, up, fov}]}. ``fov`` is the vertical field of view in degrees.
    ``frameRate``, ``up`` and ``fov`` may be missing.

    Args:
        path: the file.
        width: of the frames, px.
        height: of the frames, px.

    Raises:
        UserError: the file is missing or damaged, or has fewer than two frames.
    """
    try:
        track = json.loads(path.read_text(encoding="utf-8"))
        frames, rate = track["frames"], track.get("frameRate")
        shots = tuple(_track_shot(frame, width, height) for frame in frames)
        rate = None if rate is None else float(rate)
        if rate is not None and not 0 < rate <= 1000:
            raise ValueError(f"frameRate is {rate:g}")
    except OSError as error:
        raise UserError(f"--path {path} cannot be read ({error.strerror or error}): name another file.") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        form = '{"frameRate": 30, "frames": [{"position": [x, y, z], "target": [x, y, z], "up": [x, y, z], "fov": 50}]}'
        raise UserError(f"--path {path} is no camera track ({error}): write it as {form}.") from error
    _check_enough(shots, str(path))
    return shots, rate


def sized(
    shots: Sequence[Shot], width: int | None = None, height: int | None = None, *, one_size: bool
) -> tuple[Shot, ...]:
    """The shots at the size of the film; each shows at least its own field of view.

    Args:
        shots: at least one.
        width: px; None keeps the aspect ratio, or the size.
        height: px; None keeps the aspect ratio, or the size.
        one_size: whether all frames have the size of the first, with even sides, also if no size is given.
    """
    if not one_size and width is None and height is None:
        return tuple(shots)
    first = shots[0].camera
    if width is None:
        width = first.width if height is None else round(height * first.width / first.height)
    if height is None:
        height = round(width * first.height / first.width)
    width, height = max(2, width + width % 2), max(2, height + height % 2)
    return tuple(replace(shot, camera=_fitted(shot.camera, width, height)) for shot in shots)


def frames_of(
    subject: Subject,
    shots: Sequence[Shot],
    selection: Selection,
    what: What,
    *,
    on_depth: Callable[[NDArray[np.float32]], None] | None = None,
    after_frame: Callable[[], object] = lambda: None,
) -> Iterator[NDArray[np.uint8]]:
    """[H, W, 3] RGB of each shot.

    Args:
        subject: the splat.
        shots: in the coordinates of the splat.
        selection: from ``subject.opened.select_rasterizer``.
        what: ``colour``; ``depth``, near white and far black over the whole film; or ``alpha``, opaque white.
        on_depth: takes the depth of each frame: [H, W] float32, world units along the optical axis, 0 where alpha is
            below 0.5.
        after_frame: called after each frame.

    Raises:
        UserError: the splat cannot be rendered.
    """
    model = GaussianModel.from_splat_data(subject.data, device=selection.device)
    background = subject.opened.background(selection.device)
    near, far = _depth_range(subject.opaque_points(), shots, (1, 99)) if what == "depth" else (0.0, 1.0)
    depth = what == "depth" or on_depth is not None
    for shot in shots:
        pose = torch.from_numpy(shot.world_to_camera).to(selection.device, torch.float32)
        try:
            with torch.no_grad():
                output = selection.rasterizer.render(model, shot.camera, pose, background, depth=depth)
        except FloatingPointError as error:
            raise UserError(f"{subject.opened.path} is damaged ({error}): copy it again, or train again.") from None
        if on_depth is not None:
            assert output.depth is not None
            opaque = output.alpha >= _LEAST_ALPHA
            on_depth(torch.where(opaque, output.depth / subject.opened.frame.scale, 0.0).cpu().numpy())
        if what == "colour":
            picture = output.image
        else:
            picture = output.alpha
            if what == "depth":
                assert output.depth is not None
                # Scaled by alpha, because the depth of a nearly transparent pixel is noise.
                picture = picture * ((far - output.depth) / (far - near)).clamp(0, 1)
            picture = picture[..., None].expand(-1, -1, 3)
        yield (picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        after_frame()


def _split_shots(
    opened: OpenedSplat, split: str, scene: Path | None, notify: Callable[[str], None]
) -> tuple[Shot, ...]:
    """The held-out or the training views, from the scene: cameras.json does not tell them apart."""
    loaded = opened.load_scene(scene, notify)
    views = loaded.test_views if split == "test" else loaded.train_views
    if not views:
        raise UserError(f"--path {split}: the run of {opened.path} has no held-out views: give --path train or auto.")
    _check_enough(views, split)
    return tuple(Shot(camera=view.camera, world_to_camera=view.world_to_camera, name=view.name) for view in views)


def _photo_shots(subject: Subject, scene: Path | None, notify: Callable[[str], None]) -> tuple[Shot, ...] | None:
    """The shots of all photos by name; None for a splat without cameras."""
    opened = subject.opened
    shots = None if scene is not None else shots_of_run(opened)
    if shots is not None:
        shots = tuple(map(subject.moved, shots))
    elif scene is not None or opened.scene_path is not None:
        loaded = opened.load_scene(scene, notify)
        views = (*loaded.test_views, *loaded.train_views)
        shots = tuple(Shot(camera=each.camera, world_to_camera=each.world_to_camera, name=each.name) for each in views)
    return None if shots is None else tuple(sorted(shots, key=lambda shot: shot.name))


def _around(subject: Subject, path: str, count: int) -> tuple[Shot, ...]:
    """A circle about a splat without cameras, with -y upwards as in most splat files."""
    if path not in ("auto", "orbit"):
        raise UserError(
            f"--path {path} needs the cameras of a run, and {subject.opened.path} has none: give --path orbit, or the "
            "scene with --scene DIR."
        )
    page = default_page(subject.data, "")
    poses = paths.circle(np.array(page.focus), np.array(page.up), page.distance, count)
    camera = _camera(*_DEFAULT_SIZE, _DEFAULT_FOV_DEG)
    return tuple(Shot(camera=camera, world_to_camera=pose) for pose in poses)


def _along(
    subject: Subject, photos: tuple[Shot, ...], path: str, count: int, notify: Callable[[str], None]
) -> tuple[Shot, ...]:
    """The shots of a path from the cameras of the photos."""
    _check_enough(photos, path)
    eyes, turns = eyes_and_turns(photos)
    chosen = paths.choose_path(eyes, turns) if path == "auto" else path
    if path == "auto":
        notify(f"Camera path: {chosen}.")
    if path == "orbit" and paths.choose_path(eyes, turns) != "orbit":
        notify("The photos show the scene from one side: give --path auto to leave out the sides that no photo shows.")
    by_focal = sorted((shot.camera for shot in photos), key=lambda camera: camera.fy / camera.height)
    camera = by_focal[len(by_focal) // 2]
    if chosen == "interpolate":
        focals = np.array([shot.camera.fy / shot.camera.height for shot in photos])
        poses, focals = paths.interpolate(eyes, turns, focals, count)
        zooms = focals * camera.height / camera.fy
        return tuple(
            Shot(camera=replace(camera, fx=camera.fx * zoom, fy=camera.fy * zoom), world_to_camera=pose)
            for pose, zoom in zip(poses, zooms.tolist(), strict=True)
        )
    if chosen != "spiral" and paths.in_one_place(eyes):
        raise UserError(f"--path {path}: all cameras stand in one place: give --path interpolate.")
    if chosen == "spiral":
        near, far = _depth_range(subject.opaque_points(), photos, (5, 95))
        poses = paths.spiral(eyes, turns, near, far, count)
    else:
        poses = (paths.orbit if chosen == "orbit" else paths.arc)(eyes, turns, count)
    return tuple(Shot(camera=camera, world_to_camera=pose) for pose in poses)


def _track_shot(frame: dict[str, object], width: int, height: int) -> Shot:
    """The shot of one frame of a camera track; raises ValueError for impossible numbers."""
    vectors = (frame["position"], frame["target"], frame.get("up", (0.0, -1.0, 0.0)))
    position, target, up = (np.array(vector, dtype=np.float64) for vector in vectors)
    for name, vector in (("position", position), ("target", target), ("up", up)):
        if vector.shape != (3,) or not np.isfinite(vector).all():
            raise ValueError(f"{name} is not three numbers")
    if np.linalg.norm(target - position) < 1e-9 or np.linalg.norm(up) < 1e-9:
        raise ValueError("position and target are the same, or up is 0")
    fov = float(str(frame.get("fov", _DEFAULT_FOV_DEG)))
    if not 0 < fov < 180:
        raise ValueError(f"fov is {fov:g}")
    pose = paths.facing(position[None], target, up)[0]
    return Shot(camera=_camera(width, height, fov), world_to_camera=pose)


def _camera(width: int, height: int, fov_deg: float) -> Camera:
    focal = height / 2 / math.tan(math.radians(fov_deg) / 2)
    return Camera(width=width, height=height, fx=focal, fy=focal, cx=width / 2, cy=height / 2)


def _fitted(camera: Camera, width: int, height: int) -> Camera:
    """A camera of that image size whose view contains the view of ``camera``, with square pixels staying square."""
    scale = min(width / camera.width, height / camera.height)
    return replace(
        camera,
        width=width,
        height=height,
        fx=camera.fx * scale,
        fy=camera.fy * scale,
        cx=width / 2 + (camera.cx - camera.width / 2) * scale,
        cy=height / 2 + (camera.cy - camera.height / 2) * scale,
    )


def _depth_range(
    points: NDArray[np.float64], shots: Sequence[Shot], percent: tuple[float, float]
) -> tuple[float, float]:
    """Two percentiles of the depths of points [P, 3] in the images of some of the shots, the first below the second."""
    depths = []
    for index in np.unique(np.linspace(0, len(shots) - 1, _SAMPLED_SHOTS).astype(int)):
        camera, pose = shots[index].camera, shots[index].world_to_camera
        x, y, z = (points @ pose[:3, :3].T + pose[:3, 3]).T
        inside = (z > 0) & (abs(x) * camera.fx < z * camera.width / 2) & (abs(y) * camera.fy < z * camera.height / 2)
        depths.append(z[inside])
    found = np.concatenate(depths)
    if len(found) == 0:
        return 1.0, 10.0
    near, far = np.percentile(found, percent)
    return float(near), max(float(far), 1.001 * float(near))


def _warn_of_matter(subject: Subject, shots: Sequence[Shot], notify: Callable[[str], None]) -> None:
    """Tell if the path goes through many opaque Gaussians."""
    near = _NEAR_SHARE * _depth_range(subject.opaque_points(), shots, (50, 50))[0]
    eyes = np.stack([camera_centre(shot.world_to_camera) for shot in shots])
    counts = cKDTree(subject.opaque_points()).query_ball_point(eyes, near, return_length=True)
    if counts.max() >= _MANY:
        notify("The camera path goes through parts of the scene: another --path may show more.")


def _check_enough(shots: Sequence[object], path: str) -> None:
    if len(shots) < 2:
        count = "1 camera" if len(shots) == 1 else "no cameras"
        raise UserError(f"--path {path} has {count} and a film needs 2: give another path, for example a FILE.json.")
