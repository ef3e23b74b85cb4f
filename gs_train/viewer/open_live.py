"""Opens the live view of a training: the rasterizer, the page, and the sentences about it."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from gs_train.render.select import select_rasterizer
from gs_train.scene.frame import training_frame
from gs_train.scene.types import Scene
from gs_train.viewer.hosting import ssh_hint
from gs_train.viewer.live import LiveView
from gs_train.viewer.pictures import Painter
from gs_train.viewer.window import ViserWindow


def open_live_view(
    scene: Scene,
    *,
    device: str,
    antialiased: bool,
    sh_degree: int,
    host: str,
    port: int,
    notify: Callable[[str], None],
) -> LiveView:
    """Begin to serve the page of a training.

    Args:
        scene: from ``load_scene``, in its own coordinates.
        device: as ``--device``.
        antialiased: as ``--antialiased``.
        sh_degree: largest degree of the model.
        host: address to bind to.
        port: a free port.
        notify: takes the address of the page, and warnings.

    Raises:
        UserError: the device does not work.
    """
    selection = select_rasterizer(device, notify, antialiased=antialiased, depth=True)
    views = training_frame(scene).apply(scene).train_views
    window = ViserWindow(host=host, port=port, title=scene.path.absolute().name, views=views, sh_degree=sh_degree)
    notify(f"View: http://{f'[{host}]' if ':' in host else host}:{window.port}/")
    if not _is_loopback(host):
        notify(f"Everyone who reaches {host} can see and pause this training: use it in networks that you trust only.")
    elif hint := ssh_hint(window.port):
        notify(hint)
    return LiveView(window, Painter(selection.rasterizer), notify=notify)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
