"""The page that shows a splat in the browser, and its server."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import gs_train_here
from PIL import Image
from splats import trained_splat

from gs_train.errors import UserError
from gs_train.formats.html import default_page, page_html, write_html
from gs_train.formats.registry import read_splat, write_splat
from gs_train.formats.sog import encode_sog
from gs_train.run.open import open_splat
from gs_train.viewer.page_of import page_of, page_of_splat
from gs_train.viewer.paths import focus_of, up_axis
from gs_train.viewer.serve import PageServer

IDENTITY = np.eye(3)


def settings_of(page: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="settings">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    settings = json.loads(found[1])
    assert isinstance(settings, dict)
    return settings


# ---- the page ----


def test_a_page_needs_nothing_but_itself_and_is_small() -> None:
    splat = trained_splat(20, 1)
    page = page_html(default_page(splat, "a scene"), b"")
    assert len(page.encode()) < 40_000
    assert "default-src 'none'" in page and "http://" not in page and "https://" not in page
    assert "@" not in page and page.count("<script") == page.count("</script>") == 3


def test_names_cannot_leave_their_place() -> None:
    splat = trained_splat(5)
    page = page_html(default_page(splat, '</script><b title="x">'), encode_sog(splat))
    assert page.count("</script>") == 3 and "<b title" not in page
    assert settings_of(page)["title"] == '</script><b title="x">'


def test_a_page_of_a_run_has_its_cameras_and_background(tiny_run: Path) -> None:
    opened = open_splat(tiny_run)
    page = page_of(opened, IDENTITY, 1.0, (0.0, 0.0, 0.0))
    assert page is not None
    cameras = json.loads((tiny_run / "cameras.json").read_text())
    assert [camera.name for camera in page.cameras] == [entry["img_name"] for entry in cameras]
    np.testing.assert_allclose(page.cameras[0].eye, cameras[0]["position"])
    # The cameras of the sample scene look at (0, 0, 0.28), and z is upwards.
    np.testing.assert_allclose(page.focus, (0.0, 0.0, 0.28), atol=0.1)
    assert page.up[2] > 0.95 and page.background == (0.0, 0.0, 0.0)


def test_cameras_move_with_a_placed_splat(tiny_run: Path) -> None:
    opened = open_splat(tiny_run)
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    before, after = page_of(opened, IDENTITY, 1.0, (0.0, 0.0, 0.0)), page_of(opened, quarter, 2.0, (1.0, 2.0, 3.0))
    assert before is not None and after is not None
    for a, b in zip(before.cameras, after.cameras, strict=True):
        point = np.array([0.3, -0.2, 0.5])
        seen = np.reshape(a.turn, (3, 3)) @ (point - a.eye)
        placed = np.reshape(b.turn, (3, 3)) @ (2.0 * quarter @ point + [1.0, 2.0, 3.0] - np.array(b.eye))
        np.testing.assert_allclose(placed, 2.0 * seen, atol=1e-9)
    assert after.distance == pytest.approx(2.0 * before.distance)


def test_parallel_cameras_have_a_focus_and_disagreeing_ones_an_up_axis() -> None:
    eyes = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert np.isfinite(focus_of(eyes, np.stack([IDENTITY, IDENTITY]))).all()
    upside_down = np.diag([-1.0, -1.0, 1.0])
    np.testing.assert_allclose(up_axis(np.stack([IDENTITY, upside_down])), [0.0, -1.0, 0.0])


def test_export_writes_a_page_of_a_run_and_of_a_splat_file(tiny_run: Path, tmp_path: Path) -> None:
    done = gs_train_here("export", tiny_run, tmp_path / "run.html")
    assert done.returncode == 0 and "tilted" not in done.stdout, done.stdout + done.stderr
    done = gs_train_here("export", tiny_run, tmp_path / "run.html", "--up", "auto")
    assert done.returncode == 0, done.stderr
    page = settings_of((tmp_path / "run.html").read_text())
    assert page["photos"] is True
    np.testing.assert_allclose(page["up"], (0.0, -1.0, 0.0), atol=1e-6)
    write_splat(tmp_path / "splat.ply", trained_splat(30))
    done = gs_train_here("export", tmp_path / "splat.ply", tmp_path / "splat.html")
    assert done.returncode == 0, done.stderr
    assert settings_of((tmp_path / "splat.html").read_text())["photos"] is False


def test_a_page_reads_as_the_splat_inside(tmp_path: Path) -> None:
    splat, page = trained_splat(30), tmp_path / "splat.html"
    write_html(page, splat)
    write_splat(tmp_path / "splat.sog", splat)
    read, expected = read_splat(page), read_splat(tmp_path / "splat.sog")
    for name in ("xyz", "f_dc", "f_rest", "opacity", "scaling", "rotation"):
        np.testing.assert_array_equal(getattr(read, name), getattr(expected, name))
    done = gs_train_here("info", page)
    assert done.returncode == 0 and "30" in done.stdout, done.stderr
    whole = page.read_bytes()
    data = whole.rfind(b'id="data">')
    for content in (
        b"<!DOCTYPE html><p>another page",
        whole[: data + 60],
        whole.replace(b'id="data">', b'id="data">!!!!'),
    ):
        page.write_bytes(content)
        with pytest.raises(UserError, match="export it again"):
            read_splat(page)


def test_a_page_beyond_what_browsers_open_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gs_train.formats.html._MOST_MEGABYTES", 0.0001)
    with pytest.raises(UserError, match="--min-opacity"):
        write_html(tmp_path / "splat.html", trained_splat(50))
    assert not (tmp_path / "splat.html").exists()


# ---- the server ----


@contextmanager
def serving(page: str) -> Iterator[PageServer]:
    with PageServer(page, 0, pytest.fail) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: PageServer, path: str, host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_the_server_has_one_page_for_this_machine_only() -> None:
    with serving("<p>ä</p>") as server:
        assert get(server, "/") == (200, "<p>ä</p>".encode())
        assert get(server, "/", f"localhost:{server.server_port}")[0] == 200
        assert get(server, "/", "example.org")[0] == 403
        assert [get(server, path)[0] for path in ("/etc/passwd", "/../config.toml", "/?x")] == [404] * 3
        assert server.socket.getsockname()[0] == "127.0.0.1"


def test_a_taken_port_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        notes: list[str] = []
        with PageServer("", port, notes.append) as server:
            assert server.server_port > port
        assert notes == [f"Port {port} is taken: the page is at port {server.server_port}."]


def test_view_serves_until_it_is_stopped(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def stop(_server: PageServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PageServer, "serve_forever", stop)
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    done = gs_train_here("view", tiny_run, "--port", 0)
    assert done.returncode == 0 and done.stdout.startswith("Page: http://127.0.0.1:"), done.stderr
    assert len(opened) == 1
    monkeypatch.setenv("SSH_CONNECTION", "1 2 3 4")
    done = gs_train_here("view", tiny_run, "--port", 0)
    assert "ssh -L" in done.stdout and len(opened) == 1


def test_view_refuses_what_it_cannot_show(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no splat")
    for arguments, words in (((tmp_path / "notes.txt",), "splat"), ((tmp_path, "--port", 99999), "--port")):
        done = gs_train_here("view", *arguments)
        assert done.returncode == 2 and words in done.stderr, done.stderr


# ---- in a browser ----


def test_the_page_draws_what_the_cpu_rasterizer_draws(tiny_run: Path, tmp_path: Path) -> None:
    chromium, node = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("node")
    modules = os.environ.get("GS_TRAIN_NODE_MODULES")
    if chromium is None or node is None or modules is None:
        pytest.skip("needs Chromium, Node.js, and the folder of playwright-core in GS_TRAIN_NODE_MODULES")
    opened = open_splat(tiny_run)
    write_splat(tmp_path / "splat.sog", opened.splat())
    (tmp_path / "page.html").write_text(page_of_splat(opened, pytest.fail), encoding="utf-8")
    views, selection = opened.load_scene().train_views[:3], opened.select_rasterizer("cpu")
    model = open_splat(tmp_path / "splat.sog").model()
    cameras, expected = [], []
    for view in views:
        camera, pose = view.camera, view.world_to_camera
        cameras.append(
            {
                "turn": pose[:3, :3].ravel().tolist(),
                "shift": pose[:3, 3].tolist(),
                "focal": [camera.fx, camera.fy],
                "centre": [camera.cx, camera.cy],
                "size": [camera.width, camera.height],
            }
        )
        with torch.no_grad():
            output = selection.rasterizer.render(model, camera, torch.from_numpy(pose).float(), torch.zeros(3))
        expected.append(output.image.numpy().clip(0, 1))
    (tmp_path / "cameras.json").write_text(json.dumps(cameras))
    script = Path(__file__).with_name("show_page.cjs")
    command = [node, script, chromium, tmp_path / "page.html", tmp_path / "cameras.json", tmp_path]
    environment = os.environ | {"NODE_PATH": modules}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=True)
    told = json.loads(done.stdout)
    assert {name: told[name] for name in ("requests", "faults", "shown")} == {
        "requests": [],
        "faults": [],
        "shown": True,
    }
    for index, image in enumerate(expected):
        drawn = np.asarray(Image.open(tmp_path / f"{index}.png").convert("RGB")) / 255.0
        assert drawn.std() > 0.05
        assert -10 * np.log10(np.square(drawn - image).mean()) > 45
