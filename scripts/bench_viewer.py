"""How much the live view slows a training: steps per second without it, with an open page that nobody looks at, and
with a client that moves its camera all the time.

Run it as ``python scripts/bench_viewer.py SCENE`` (``gs-train sample SCENE`` writes one). The three kinds of training
alternate; each is a process of its own, and the client runs in this one. CPU seconds count the whole process of the
training, so they tell the cost on a busy machine, too. It needs the extra viewer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gs_train import TrainState

KINDS = ("without", "nobody looks", "always asked")
_SIZE = (960, 640)
_MESSAGES_PER_S = 30


def train_once(scene_path: Path, kind: str, iterations: int, first: int) -> None:
    """Train in this process and print the port of the view, then seconds and CPU seconds from step ``first`` on."""
    from gs_train import load_preset, load_scene, train
    from gs_train.viewer.hosting import LOOPBACK, free_port
    from gs_train.viewer.open_live import open_live_view

    scene = load_scene(scene_path)
    config = replace(load_preset("fast"), iterations=iterations)
    live = None
    if kind != KINDS[0]:
        port = free_port(LOOPBACK, 8400, "--viewer-host", "--viewer-port")
        settings = {name: getattr(config, name) for name in ("device", "antialiased", "sh_degree")}
        live = open_live_view(scene, host=LOOPBACK, port=port, notify=lambda _: None, **settings)
        print(port, flush=True)
    began: list[float] = []

    def step(state: TrainState) -> None:
        if live is not None:
            live.after_step(
                state.model, state.iteration, state.background.eval_color, state.smoothed, should_stop=lambda: False
            )
        if state.iteration == first:
            began.extend((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        train(scene, config, Path(folder) / "run", after_step=[step], progress=False)
        ended = (time.perf_counter(), time.process_time())
    print(json.dumps({"wall_s": ended[0] - began[0], "cpu_s": ended[1] - began[1]}), flush=True)


class Client:
    """Speaks viser's protocol as a browser does whose user never stops to turn the camera."""

    def __init__(self, port: int) -> None:
        """Connect to a page."""
        import viser
        from websockets.sync.client import connect
        from websockets.typing import Subprotocol

        self._socket = connect(
            f"ws://127.0.0.1:{port}", subprotocols=[Subprotocol(f"viser-v{viser.__version__}")], max_size=None
        )
        self.pictures = 0
        threading.Thread(target=self._receive, daemon=True).start()
        threading.Thread(target=self._send, daemon=True).start()

    def _receive(self) -> None:
        from msgspec import msgpack
        from zstandard import ZstdDecompressor

        with contextlib.suppress(Exception):
            for packet in self._socket:
                assert isinstance(packet, bytes)
                packed = packet[16 : 16 + int.from_bytes(packet[8:16], "little")]
                messages = msgpack.decode(ZstdDecompressor().decompress(packed))["messages"]
                self.pictures += sum(bool(message.get("rgb_data")) for message in messages)

    def _send(self) -> None:
        from msgspec import msgpack

        with contextlib.suppress(Exception):
            for number in range(10**9):
                angle = 0.01 * number
                message = {
                    "type": "ViewerCameraMessage",
                    # From a circle about the z axis towards its middle, with z upwards.
                    "wxyz": _looking_inwards(angle),
                    "position": (3 * math.cos(angle), 3 * math.sin(angle), 1.0),
                    "fov": 0.9,
                    "near": 0.01,
                    "far": 1000.0,
                    "image_height": _SIZE[1],
                    "image_width": _SIZE[0],
                    "look_at": (0.0, 0.0, 0.3),
                    "up_direction": (0.0, 0.0, 1.0),
                }
                self._socket.send(msgpack.encode(message))
                time.sleep(1 / _MESSAGES_PER_S)


def _looking_inwards(angle: float) -> tuple[float, ...]:
    """The quaternion wxyz of a camera on the circle, camera to world."""
    import numpy as np

    from gs_train.cameras.poses import look_at, rotation_to_quaternion

    eye = np.array([3 * math.cos(angle), 3 * math.sin(angle), 1.0])
    pose = look_at(eye, np.array([0.0, 0.0, 0.3]))
    return tuple(rotation_to_quaternion(pose[:3, :3].T).tolist())


def measure(scene: Path, kind: str, iterations: int, first: int) -> dict[str, float]:
    """Train in a process of its own, with a client if it is asked for; returns its output and the pictures."""
    command = [sys.executable, __file__, str(scene), "--kind", kind]
    command += ["--iterations", str(iterations), "--first", str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines: Iterator[str] = iter(process.stdout or ())
        client = None
        if kind != KINDS[0]:
            port = int(next(lines))
            client = Client(port) if kind == KINDS[2] else None
        figures: dict[str, float] = json.loads(next(lines))
    return figures | {"pictures": 0 if client is None else client.pictures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--first", type=int, default=100, help="first step that counts")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        train_once(arguments.scene, arguments.kind, arguments.iterations, arguments.first)
        return
    totals = dict.fromkeys(KINDS, (0.0, 0.0))
    for number in range(arguments.rounds):
        for kind in KINDS:
            figures = measure(arguments.scene, kind, arguments.iterations, arguments.first)
            print(f"round {number + 1}, {kind}: {json.dumps(figures)}", flush=True)
            totals[kind] = (totals[kind][0] + figures["wall_s"], totals[kind][1] + figures["cpu_s"])
    base = totals[KINDS[0]]
    for kind in KINDS[1:]:
        wall, cpu = (before / after for before, after in zip(base, totals[kind], strict=True))
        print(f"{kind}: {wall:.3f} of the steps per second without, {cpu:.3f} of the steps per CPU second")


if __name__ == "__main__":
    main()
