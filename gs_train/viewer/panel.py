"""The panel of a live view: settings, the state of the training, plots, and the photo of a training camera."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import viser
import viser.uplot
from numpy.typing import NDArray

from gs_train.viewer.live import Curves
from gs_train.viewer.pictures import BackgroundChoice, Look, What
from gs_train.viewer.wishes import Slot

_SMALLEST_SHARE, _SHARE, _LARGEST_SHARE = 0.05, 0.25, 0.9
_SMALLEST_RESOLUTION = 0.25


class Panel:
    """The panel, shared by all clients of a page."""

    def __init__(self, server: viser.ViserServer, slot: Slot, sh_degree: int) -> None:
        """Add the panel to a page.

        Args:
            server: of the page.
            slot: woken when a setting changes.
            sh_degree: largest degree of the model.
        """
        self._gui, self._slot, self._photos = server.gui, slot, dict[int, viser.GuiImageHandle]()
        gui = server.gui
        self._state = gui.add_markdown("The training begins.")
        self._pause = gui.add_checkbox("Pause training", False)
        self._share = gui.add_slider(
            "Share of time",
            *(_SMALLEST_SHARE, _LARGEST_SHARE, 0.05, _SHARE),
            hint="Share of the time that pictures may take from the training while somebody looks",
        )
        self._what = gui.add_dropdown("Show", get_args(What))
        self._degree = gui.add_slider("SH degree", 0, max(sh_degree, 1), 1, sh_degree, disabled=sh_degree == 0)
        self._background = gui.add_dropdown("Background", get_args(BackgroundChoice))
        self._resolution = gui.add_slider("Resolution", _SMALLEST_RESOLUTION, 1.0, 0.05, 1.0)
        self._cameras = gui.add_checkbox("Training cameras", True, hint="Click a camera to look through it")
        self._plots = gui.add_folder("Loss and PSNR", visible=False)
        self._loss, self._psnr = self._plot("loss", "#d06000"), self._plot("PSNR, dB", "#0060d0")
        for handle in (self._pause, self._share, self._what, self._degree, self._background, self._resolution):
            handle.on_update(self._wake)

    # ---- settings

    def look(self) -> Look:
        """The content of pictures."""
        return Look(
            what=self._what.value,
            sh_degree=self._degree.value,
            background=self._background.value,
            resolution=self._resolution.value,
        )

    def share(self) -> float:
        """Share of the time for pictures."""
        # A page may send any number.
        return min(max(float(self._share.value), _SMALLEST_SHARE), _LARGEST_SHARE)

    def is_paused(self) -> bool:
        """Whether the training is to wait."""
        return bool(self._pause.value)

    def show_cameras_of(self, frame: viser.FrameHandle) -> None:
        """Let the checkbox show and hide a node of the scene."""

        async def update(_event: Any) -> None:
            frame.visible = self._cameras.value

        self._cameras.on_update(update)

    # ---- contents

    def tell(self, iteration: int, gaussians: int, curves: Curves) -> None:
        """Show the state of the training."""
        lines = [f"Iteration {iteration:,}, {gaussians:,} Gaussians"]
        if len(curves.iterations) > 1:
            lines.append(f"Loss {curves.loss[-1]:.4f}, PSNR {curves.psnr[-1]:.2f} dB")
            iterations = np.array(curves.iterations, np.float64)
            self._loss.data = (iterations, np.array(curves.loss))
            self._psnr.data = (iterations, np.array(curves.psnr))
            self._plots.visible = True
        self._state.content = "  \n".join(lines)

    def end(self, iteration: int, gaussians: int) -> None:
        """Show that the training has ended."""
        self._state.content = f"The training has ended: iteration {iteration:,}, {gaussians:,} Gaussians"
        for handle in (self._pause, self._share):
            handle.visible = False

    def show_photo(self, client: viser.ClientHandle, name: str, photo: NDArray[np.uint8]) -> None:
        """Replace the photo that a client sees, [H, W, 3] RGB."""
        self.forget(client.client_id)
        self._photos[client.client_id] = client.gui.add_image(photo, label=name, format="jpeg", jpeg_quality=85)

    def forget(self, client_id: int) -> None:
        """Remove the photo of a client."""
        if (photo := self._photos.pop(client_id, None)) is not None:
            photo.remove()

    def _plot(self, label: str, color: str) -> viser.GuiUplotHandle:
        series = (viser.uplot.Series(label="iteration"), viser.uplot.Series(label=label, stroke=color, width=2))
        with self._plots:
            return self._gui.add_uplot(
                (np.zeros(2), np.zeros(2)), series, scales={"x": viser.uplot.Scale(time=False)}, height=140
            )

    async def _wake(self, _event: Any) -> None:
        self._slot.wake()
