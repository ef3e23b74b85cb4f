"""The live view with viser: a client that speaks its protocol, and pages in headless Chromium."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import command, environment
from numpy.typing import NDArray
from PIL import Image

from gs_train.cameras.poses import camera_centre, rotation_to_quaternion
from gs_train.run.open import open_splat
from gs_train.scene.types import View
from gs_train.viewer.pictures import Look, Painter
from gs_train.viewer.wishes import Wish, lens_of

WIDTH, HEIGHT = 900, 600


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A command that serves a page: the process, the page's address, and the lines of stderr so far."""
    with subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # The tests may run as a shell's background job, which ignores SIGINT, as its children do.
        preexec_fn=None if sys.platform == "win32" else lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        lines, found = list[str](), threading.Event()

        def read(stream: Any) -> None:
            for line in stream:
                lines.append(line)
                if "http://" in line:
                    found.set()
            found.set()

        threads = [threading.Thread(target=read, args=(process.stderr,), daemon=True)]
        if arguments[0] == "view":
            threads.append(threading.Thread(target=read, args=(process.stdout,), daemon=True))
        for thread in threads:
            thread.start()
        try:
            assert found.wait(200)
            address = re.search(r"http://127\.0\.0\.1:\d+/", "".join(lines))
            assert address is not None, "".join(lines)
            yield process, address[0], lines
        finally:
            process.kill()


def painted(run: Path, view: View) -> NDArray[np.float64]:
    """The picture of a canvas that looks through a training camera."""
    opened = open_splat(run)
    fov = 2 * np.degrees(np.arctan(view.camera.height / (2 * view.camera.fy)))
    wish = Wish(world_to_camera=view.world_to_camera, lens=lens_of(float(fov), WIDTH, HEIGHT))
    rasterizer = opened.select_rasterizer("cpu").rasterizer
    picture = Painter(rasterizer).paint(opened.model(), wish, Look(), lambda: torch.zeros(3), 1.0)
    assert picture is not None
    return picture.astype(np.float64)


class Client:
    """A client of viser's page without a browser."""

    def __init__(self, address: str) -> None:
        viser, sockets = pytest.importorskip("viser"), pytest.importorskip("websockets.sync.client")
        protocol = f"viser-v{viser.__version__}"
        self.socket = sockets.connect(address.replace("http", "ws"), subprotocols=[protocol], max_size=None)

    def send(self, kind: str, **fields: object) -> None:
        from msgspec import msgpack

        self.socket.send(msgpack.encode({"type": kind, **fields}))

    def look_through(self, view: View) -> None:
        pose = view.world_to_camera
        eye, forward = camera_centre(pose), pose[2, :3]
        self.send(
            "ViewerCameraMessage",
            wxyz=rotation_to_quaternion(pose[:3, :3].T).tolist(),
            position=eye.tolist(),
            fov=2 * float(np.arctan(view.camera.height / (2 * view.camera.fy))),
            near=0.01,
            far=1000.0,
            image_height=HEIGHT,
            image_width=WIDTH,
            look_at=(eye + forward).tolist(),
            up_direction=(-pose[1, :3]).tolist(),
        )

    def picture(self) -> NDArray[np.float64]:
        """The next picture of full size."""
        from msgspec import msgpack
        from zstandard import ZstdDecompressor

        while True:
            packet = self.socket.recv(timeout=100)
            packed = packet[16 : 16 + int.from_bytes(packet[8:16], "little")]
            for message in msgpack.decode(ZstdDecompressor().decompress(packed))["messages"]:
                if message["type"] == "BackgroundImageMessage" and message["rgb_data"]:
                    image = Image.open(io.BytesIO(message["rgb_data"]))
                    if image.size == (WIDTH, HEIGHT):
                        return np.asarray(image, np.float64)


def test_a_client_sees_the_training_and_ctrl_c_saves(tiny_scene: Path, tmp_path: Path) -> None:
    pytest.importorskip("viser", reason="needs the extra viewer")
    run = tmp_path / "run"
    flags = ("--iterations", 100_000, "--save-every", 50_000, "--max-gaussians", 2000, "--viewer", "--viewer-port", 0)
    with serving("train", tiny_scene, "--out", run, "--device", "cpu", *flags) as (process, address, lines):
        client = Client(address)
        # Its page has no share button, and the server ignores the message of one.
        client.send("ShareUrlRequest")
        # A client may send any number.
        client.send("GuiUpdateMessage", uuid="none", updates={"value": 1e300})
        from gs_train.scene.load import load_scene

        client.look_through(load_scene(tiny_scene).train_views[0])
        first = client.picture()
        later = client.picture()
        assert first.std() > 5 and (first != later).any()
        process.send_signal(signal.SIGINT)
        assert process.wait(100) == 130
        assert process.stdout is not None and process.stdout.read().count("\n") == 1
        assert not any("Traceback" in line or "share" in line.lower() for line in lines), lines
    assert open_splat(run).iteration


def test_a_resumed_run_that_has_ended_is_shown(own_run: Path) -> None:
    pytest.importorskip("viser", reason="needs the extra viewer")
    flags = ("--viewer", "--viewer-port", 0)
    with serving("train", "--resume", own_run, *flags) as (process, address, _):
        view = open_splat(own_run).load_scene().train_views[1]
        client = Client(address)
        client.look_through(view)
        picture, expected = client.picture(), painted(own_run, view)
        assert np.sqrt(np.square(picture - expected).mean()) < 5
        assert np.sqrt(np.square(picture - expected[::-1]).mean()) > 10
        process.send_signal(signal.SIGINT)
        assert process.wait(100) == 0
        assert process.stdout is not None and "until Ctrl-C" in process.stdout.read()


def run_browser(address: str, out: Path, *flags: str) -> dict[str, object]:
    chromium, node = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("node")
    modules = os.environ.get("GS_TRAIN_NODE_MODULES")
    assert chromium is not None and node is not None and modules is not None
    script = Path(__file__).with_name("show_live.cjs")
    done = subprocess.run(
        [node, script, chromium, address, out, *flags],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"NODE_PATH": modules},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.slow
@pytest.mark.parametrize("page", ["viser", "without WebGL"])
def test_pages_in_a_browser(own_run: Path, tmp_path: Path, page: str) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None or shutil.which("node") is None or "GS_TRAIN_NODE_MODULES" not in os.environ:
        pytest.skip("needs Chromium, Node.js, and the folder of playwright-core in GS_TRAIN_NODE_MODULES")
    arguments: tuple[object, ...] = ("view", own_run, "--render", "server", "--port", 0, "--no-browser")
    flags: tuple[str, ...] = ("--no-webgl",)
    if page == "viser":
        pytest.importorskip("viser", reason="needs the extra viewer")
        arguments, flags = ("train", "--resume", own_run, "--viewer", "--viewer-port", 0), ()
    with serving(*arguments) as (_, address, _):
        found = run_browser(address, tmp_path, *flags)
    assert found == {"requests": [], "faults": [], "webgl": page == "viser"}
    first, dragged = (
        np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"), np.float64)[200:, 40:560]
        for name in ("first", "dragged")
    )
    if page == "viser":
        expected = painted(own_run, open_splat(own_run).load_scene().train_views[0])
        assert correlation(first, expected[200:, 40:560]) > 0.9
        assert correlation(first, expected[::-1][200:, 40:560]) < 0.7
    assert first.std() > 20 and correlation(first, dragged) < 0.98
