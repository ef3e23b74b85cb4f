"""The commands of the live view: flags of ``train --viewer``, and ``view --render server``. No viser is needed."""

from __future__ import annotations

import http.client
import io
import signal
import socket
import subprocess
import sys
import threading
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import command, environment, gs_train_here
from PIL import Image

from gs_train.errors import UserError
from gs_train.run.open import open_splat
from gs_train.scene.types import View
from gs_train.viewer import hosting
from gs_train.viewer.page_of import page_and_splat
from gs_train.viewer.remote import picture_maker, read_camera

# ---- the command line ----


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--viewer", "--json"), ("--json", "Ctrl-C")),
        (("--viewer-port", "9000"), ("--viewer-port", "add --viewer")),
        (("--viewer-host", "0.0.0.0"), ("--viewer-host", "add --viewer")),
        (("--viewer", "--viewer-port", "70000"), ("--viewer-port", "65535")),
        (("--viewer", "--viewer-port", "-1"), ("--viewer-port", "65535")),
        (("--viewer", "--viewer-host", "no such host"), ("--viewer-host", "127.0.0.1")),
        (("--viewer", "--viewer-host", "192.0.2.1"), ("--viewer-host", "127.0.0.1")),
        (("--viewer", "--viewer-host", ""), ("--viewer-host", "127.0.0.1")),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_bad_flags_of_the_viewer(
    tiny_scene: Path, tmp_path: Path, flags: tuple[str, ...], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosting, "version", lambda _name: "1.1.1")
    done = gs_train_here("train", tiny_scene, "--out", tmp_path / "run", *flags)
    assert done.returncode == 2 and all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("installed", [None, "1.0.9"])
def test_viser_missing_or_old(
    tiny_scene: Path, tmp_path: Path, installed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(hosting, "version", version)
    done = gs_train_here("train", tiny_scene, "--out", tmp_path / "run", "--viewer")
    assert done.returncode == 2 and "pip install" in done.stderr and "gs-train view" in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def test_a_taken_port_gives_the_next_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert hosting.free_port("127.0.0.1", port, "--h", "--p") > port
    assert hosting.free_port("localhost", 0, "--h", "--p") > 0
    with pytest.raises(UserError, match="--p"):
        hosting.bind_first_free(lambda _port: (_ for _ in ()).throw(OSError(98, "taken")), 8080, "--p")


def test_the_ssh_command_names_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert hosting.ssh_hint(8081) is None
    monkeypatch.setenv("SSH_CONNECTION", "1 2 3 4")
    assert "ssh -L 8081:127.0.0.1:8081 HOST" in str(hosting.ssh_hint(8081))


# ---- view --render server ----


def query(view: View) -> str:
    pose, camera = view.world_to_camera, view.camera
    numbers = [*pose[:3, :3].ravel(), *pose[:3, 3], camera.fx, camera.fy, camera.cx, camera.cy]
    return ",".join(str(float(number)) for number in [*numbers, camera.width, camera.height])


def test_view_renders_on_the_server(tiny_run: Path) -> None:
    with subprocess.Popen(
        command("view", tiny_run, "--render", "server", "--port", 0, "--no-browser", "--device", "cpu"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # The tests may run as a shell's background job, which ignores SIGINT, as its children do.
        preexec_fn=None if sys.platform == "win32" else lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        connection = http.client.HTTPConnection("127.0.0.1", int(line.split("127.0.0.1:")[1].split("/")[0]), timeout=60)

        def get(path: str, host: str = "localhost") -> tuple[int, bytes]:
            connection.request("GET", path, headers={"Host": host})
            answer = connection.getresponse()
            return answer.status, answer.read()

        status, page = get("/")
        assert status == 200 and b"img-src 'self'" in page and b"webgl2" not in page and len(page) < 40_000
        opened = open_splat(tiny_run)
        view = opened.load_scene().train_views[0]
        status, content = get(f"/picture?camera={query(view)}&moving=0")
        assert status == 200
        picture = np.asarray(Image.open(io.BytesIO(content)), np.float64)
        rasterizer, pose = opened.select_rasterizer("cpu").rasterizer, torch.from_numpy(view.world_to_camera).float()
        with torch.no_grad():
            image = rasterizer.render(opened.model(), view.camera, pose, torch.zeros(3)).image
        expected = 255 * image.clamp(0, 1).numpy()
        assert picture.shape == expected.shape and np.sqrt(np.square(picture - expected).mean()) < 5
        status, content = get(f"/picture?camera={query(view)}&moving=1")
        assert status == 200 and Image.open(io.BytesIO(content)).size == (32, 24)
        bad = ("/picture", "/picture?", "/picture?camera=1,2", "/picture?camera=" + ",".join(["nan"] * 18), "/pictures")
        assert [get(path)[0] for path in bad] == [404, 400, 400, 400, 404]
        assert get(f"/picture?camera={query(view)}&moving=0", "example.org")[0] == 403
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


@pytest.mark.parametrize("place", [0, 12, 16, 17])
def test_cameras_that_cannot_be(place: int) -> None:
    numbers = [*np.eye(3).ravel(), 0, 0, 1, 50, 50, 32, 24, 64, 48]
    read_camera(",".join(map(str, numbers)))
    for value in ("1e30", "-5", "0", "inf", "x", ""):
        broken = [*map(str, numbers)]
        broken[place] = value
        with pytest.raises(ValueError):
            read_camera(",".join(broken))


def test_device_of_view_is_for_the_server(tiny_run: Path) -> None:
    for flags, words in ((("--device", "cpu"), "--render server"), (("--device", "tpu"), "--device tpu")):
        done = gs_train_here("view", tiny_run, *flags)
        assert done.returncode == 2 and words in done.stderr, done.stderr


def test_threads_ask_at_once_and_get_one_picture_each(tiny_run: Path) -> None:
    opened = open_splat(tiny_run)
    _, data = page_and_splat(opened, lambda _: None)
    answer = picture_maker(opened, data, opened.select_rasterizer("cpu"))
    view, found = opened.load_scene().train_views[0], list[bytes]()
    threads = [threading.Thread(target=lambda: found.append(answer(f"camera={query(view)}"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
