"""The window of a live view: a viser page with the pictures, a panel, and the training cameras.

Pictures go out as viser's background image. Callbacks run in viser's event loop, so they only store values: the
training thread draws, encodes and decodes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich
import viser
from numpy.typing import NDArray
from PIL import Image

from gs_train.cameras.poses import camera_centre, pose_at, quaternion_to_rotation, rotation_to_quaternion
from gs_train.errors import UserError
from gs_train.scene.photos.decode import decode_image
from gs_train.scene.types import View
from gs_train.viewer.live import Curves
from gs_train.viewer.panel import Panel
from gs_train.viewer.paths import focus_of, up_axis
from gs_train.viewer.pictures import Look
from gs_train.viewer.wishes import LARGEST_NUMBER, Due, Slot, Wish, lens_of

_MOST_FRUSTUMS = 200
_FRUSTUM_SIZE = 0.04
"""Of the distance between cameras and focus."""
_BALL_SIZE = 0.3
"""Radius of the ball of a camera, of the size of its frustum."""
_FRUSTUM_COLOR = (255, 160, 0)
_PHOTO_PX = 480


class _Server(viser.ViserServer):
    """A server without viser's public tunnel, which a page could request even without its button."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        return None


class ViserWindow:
    """A viser page, as ``live.Window``."""

    def __init__(self, *, host: str, port: int, title: str, views: Sequence[View], sh_degree: int) -> None:
        """Begin to serve.

        Args:
            host: address to bind to.
            port: a free port.
            title: of the panel.
            views: the training views in the coordinates of the model.
            sh_degree: largest degree of the model.
        """
        self.slot = Slot()
        self._views, self._clients, self._photo_wishes = views, dict[int, viser.ClientHandle](), dict[int, int]()
        # viser prints its own lines to stdout, which belongs to the results of the command.
        rich.reconfigure(quiet=True)
        self._server = _Server(host=host, port=port, label=title, verbose=False)
        self._server.gui.configure_theme(show_logo=False, show_share_button=False)
        self._panel = Panel(self._server, self.slot, sh_degree)
        self._place_cameras()
        self._server.on_client_connect(self._connect)
        self._server.on_client_disconnect(self._disconnect)

    @property
    def port(self) -> int:
        """The port that the page is at."""
        return self._server.get_port()

    def close(self) -> None:
        """End the page."""
        self._server.stop()

    # ---- live.Window

    def look(self) -> Look:
        return self._panel.look()

    def share(self) -> float:
        return self._panel.share()

    def is_paused(self) -> bool:
        return self._panel.is_paused()

    def show(self, due: Due, picture: NDArray[np.uint8]) -> None:
        client = self._clients.get(due.client)
        if client is None:
            return
        with warnings.catch_warnings():
            # viser warns if the client has just gone.
            warnings.simplefilter("ignore")
            client.scene.set_background_image(picture, format="jpeg", jpeg_quality=due.jpeg_quality)
            client.flush()

    def tell(self, iteration: int, gaussians: int, curves: Curves) -> None:
        self._panel.tell(iteration, gaussians, curves)

    def answer(self) -> None:
        while self._photo_wishes:
            client_id, index = self._photo_wishes.popitem()
            if (client := self._clients.get(client_id)) is not None:
                self._show_photo(client, self._views[index])

    def end(self, iteration: int, gaussians: int) -> None:
        self._panel.end(iteration, gaussians)

    # ---- clients, in viser's event loop

    async def _connect(self, client: viser.ClientHandle) -> None:
        self._clients[client.client_id] = client

        async def ask(camera: viser.CameraHandle) -> None:
            turn = quaternion_to_rotation(tuple(camera.wxyz.tolist())).T
            pose = pose_at(camera.position, turn)
            lens = lens_of(math.degrees(camera.fov), camera.image_width, camera.image_height)
            if np.abs(pose).max() < LARGEST_NUMBER:
                self.slot.ask(client.client_id, Wish(world_to_camera=pose, lens=lens))

        client.camera.on_update(ask)
        await ask(client.camera)

    async def _disconnect(self, client: viser.ClientHandle) -> None:
        self._clients.pop(client.client_id, None)
        self.slot.forget(client.client_id)
        self._panel.forget(client.client_id)

    # ---- training cameras

    def _place_cameras(self) -> None:
        """Set the up axis and the first view, and draw the frustums of the training cameras."""
        poses = [view.world_to_camera for view in self._views]
        eyes, turns = np.stack([camera_centre(pose) for pose in poses]), np.stack([pose[:3, :3] for pose in poses])
        up, focus = up_axis(turns), focus_of(eyes, turns)
        distance = float(np.median(np.linalg.norm(eyes - focus, axis=1))) or 1.0
        ahead = max(float((focus - eyes[0]) @ turns[0, 2]), 0.1 * distance)
        server, initial = self._server, self._server.initial_camera
        server.scene.set_up_direction(up)
        server.scene.world_axes.visible = False
        initial.position, initial.look_at, initial.up = eyes[0], eyes[0] + ahead * turns[0, 2], up
        initial.fov = _fov(self._views[0])
        self._panel.show_cameras_of(server.scene.add_frame("/cameras", show_axes=False))
        radius = _BALL_SIZE * _FRUSTUM_SIZE * distance
        chosen = np.linspace(0, len(poses) - 1, min(len(poses), _MOST_FRUSTUMS)).round().astype(int)
        for index in np.unique(chosen).tolist():
            view = self._views[index]
            frustum = server.scene.add_camera_frustum(
                f"/cameras/{index}",
                fov=_fov(view),
                aspect=view.camera.width / view.camera.height,
                scale=_FRUSTUM_SIZE * distance,
                thickness=1.5,
                thickness_units="screen",
                color=_FRUSTUM_COLOR,
                wxyz=rotation_to_quaternion(turns[index].T),
                position=eyes[index],
            )
            # The thin lines of a frustum are hard to hit. The ball is behind the camera, which would see its inside.
            ball = server.scene.add_icosphere(
                f"/cameras/{index}/ball", radius=radius, color=_FRUSTUM_COLOR, position=(0.0, 0.0, -1.5 * radius)
            )
            for handle in (frustum, ball):
                handle.on_click(self._flight_to(index, ahead))

    def _flight_to(self, index: int, ahead: float) -> Any:
        """A callback that looks through the training camera ``index`` and asks for its photo."""
        view = self._views[index]
        eye, turn = camera_centre(view.world_to_camera), view.world_to_camera[:3, :3]

        async def fly(event: Any) -> None:
            camera = event.client.camera
            with event.client.atomic():
                camera.position, camera.fov = eye, _fov(view)
                camera.look_at = eye + ahead * turn[2]
                camera.wxyz = rotation_to_quaternion(turn.T)
            self._photo_wishes[event.client.client_id] = index
            self.slot.wake()

        return fly

    def _show_photo(self, client: viser.ClientHandle, view: View) -> None:
        try:
            image = Image.fromarray(decode_image(view)[:, :, :3])
        except UserError:
            return
        image.thumbnail((_PHOTO_PX, _PHOTO_PX))
        self._panel.show_photo(client, view.name, np.asarray(image))


def _fov(view: View) -> float:
    """Vertical field of view, rad."""
    return 2 * math.atan(view.camera.height / (2 * view.camera.fy))
