"""Flips every single bit of a small checkpoint, and reads it each time.

    python scripts/try_flips.py [--gaussians 20] [--every 1]

A flip is noticed if the file is refused with the exception for damaged files or a sentence for the user, harmless if
the content is the same as before, and silent otherwise. Prints the counts; returns 1 if a flip is silent or raises
another exception. --every N flips every Nth bit only.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from gs_train.config.settings import TrainConfig
from gs_train.errors import UserError
from gs_train.run.checkpoint import Checkpoint, DamagedCheckpoint, list_checkpoints, read_checkpoint
from gs_train.sample.scene import write_sample_scene
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.training.loop import train


def small_checkpoint(folder: Path, gaussians: int) -> Path:
    """Train a few steps with every part of the state in use; returns the checkpoint."""
    write_sample_scene(folder / "scene", views=4, width=32, height=24, points=gaussians)
    config = TrainConfig(
        iterations=3, sh_degree=1, device="cpu", exposure="affine", refine_poses=True, background="learned"
    )
    train(load_scene(folder / "scene", SceneConfig(test_every=0)), config, folder / "run")
    return list_checkpoints(folder / "run" / "checkpoints")[0]


def outcome(path: Path, intact: Checkpoint) -> str:
    """The content that a reader of the file sees."""
    try:
        read = read_checkpoint(path)
    except (DamagedCheckpoint, UserError):
        return "noticed"
    except Exception as error:
        return f"raised {type(error).__name__}"
    return "harmless" if same(vars(read), vars(intact)) else "silent"


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal, tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        equal_kind = isinstance(right, torch.Tensor) and (left.dtype, left.shape) == (right.dtype, right.shape)
        return equal_kind and left.numpy().tobytes() == right.numpy().tobytes()
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    return type(left) is type(right) and repr(left) == repr(right)


def main() -> int:
    """Flip the bits and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gaussians", type=int, default=20, help="number of Gaussians, which decides the size")
    parser.add_argument("--every", type=int, default=1, help="flip every Nth bit")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = small_checkpoint(Path(folder), options.gaussians)
        intact, data = read_checkpoint(path), path.read_bytes()
        with path.open("r+b", buffering=0) as file:
            for bit in range(0, 8 * len(data), options.every):
                byte, original = bit // 8, data[bit // 8]
                file.seek(byte)
                file.write(bytes([original ^ 1 << bit % 8]))
                counts[outcome(path, intact)] += 1
                file.seek(byte)
                file.write(bytes([original]))
    print(f"{len(data):,} bytes, {sum(counts.values()):,} flips: {dict(counts)}")
    return int(any(kind not in ("noticed", "harmless") for kind in counts))


if __name__ == "__main__":
    sys.exit(main())
