"""What ``gs-train info`` says of a path: the facts of a scene, a run, a checkpoint or a splat file, as lines of name and value.

It reads and checks; it prints and changes nothing. The invariant: whatever it describes without a fault, the other subcommands take.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gs_train.config.toml import read_config
from gs_train.errors import UserError
from gs_train.formats.ply import read_ply
from gs_train.formats.splat_data import SplatData
from gs_train.run.folder import RunFolder
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.photos.decode import image_faults

if TYPE_CHECKING:
    # Checkpoints need torch, which takes seconds to load; scenes and splat files answer without it.
    from gs_train.run.checkpoint import Checkpoint

Facts = list[tuple[str, str]]
FAULT = "fault"
"""Name of the facts that keep a scene from being trained on."""


def describe(path: Path, notify: Callable[[str], None]) -> Facts:
    """Facts about ``path``, most important first.

    Args:
        path: scene (a folder or a transforms .json), run folder, checkpoint (.pt) or splat (.ply).
        notify: takes sentences about what is odd but not wrong.

    Raises:
        UserError: there is no such path, it is none of the four, or it does not pass its checks.
    """
    if not path.exists():
        raise UserError(
            f"{path} does not exist: name a scene folder, a run folder, a checkpoint (.pt) or a splat (.ply)."
        )
    if path.is_dir():
        return _run_facts(RunFolder(path), notify) if RunFolder(path).is_run() else _scene_facts(path, notify)
    if path.suffix == ".pt":
        return _checkpoint_facts(intact_checkpoint(path))
    if path.suffix == ".ply":
        return _splat_facts(read_ply(path))
    if path.suffix == ".json":
        return _scene_facts(path, notify)
    raise UserError(
        f"{path} is none of what info knows: name a scene folder, a run folder, a checkpoint (.pt) or a splat (.ply)."
    )


def intact_checkpoint(path: Path) -> Checkpoint:
    """One named checkpoint; UserError where it is damaged."""
    from gs_train.run.checkpoint import DamagedCheckpoint, read_checkpoint

    if not path.is_file():
        raise UserError(f"{path} does not exist: name a checkpoint (.pt).")
    try:
        return read_checkpoint(path)
    except DamagedCheckpoint:
        raise UserError(
            f"{path} is damaged or no checkpoint of gs-train: name another, or the run's folder for the newest sound one."
        ) from None


def _scene_facts(path: Path, notify: Callable[[str], None]) -> Facts:
    """What was understood of a scene, and every fault that keeps it from being trained on; its photos are decoded for that."""
    faults: list[UserError] = []
    try:
        scene = load_scene(path, SceneConfig(), faults.append)
    except UserError as fault:
        if not faults:
            raise
        return [("scene", str(path)), *_told([*faults, fault])]
    for notice in scene.notices:
        notify(notice)
    views = (*scene.train_views, *scene.test_views)
    faults += image_faults(views)
    sizes = Counter(f"{view.camera.width}x{view.camera.height}" for view in views)
    lenses = Counter(f"{view.lens.model}, undistorted when read" if view.lens else "no distortion" for view in views)
    return [
        ("scene", str(path)),
        ("views", f"{len(scene.train_views)} to train on, {len(scene.test_views)} to test on"),
        ("training size", ", ".join(f"{size} px ({count})" for size, count in sizes.most_common())),
        ("lens", ", ".join(f"{lens} ({count})" for lens, count in lenses.most_common())),
        ("points", f"{len(scene.points.xyz):,}"),
        ("extent", f"{scene.extent:.4g} world units"),
        *_told(faults),
    ]


def _told(faults: list[UserError]) -> Facts:
    """Each once: a camera is at fault for every photo that was taken through it."""
    return [(FAULT, message) for message in dict.fromkeys(map(str, faults))]


def _run_facts(folder: RunFolder, notify: Callable[[str], None]) -> Facts:
    from gs_train.run.checkpoint import list_checkpoints, newest_intact

    config, scene = read_config(folder.config)
    facts = [
        ("run", str(folder.path)),
        ("scene", "not named in config.toml" if scene is None else str(scene)),
        ("iterations", f"{config.iterations:,} asked for"),
    ]
    if list_checkpoints(folder.checkpoints):
        facts += _checkpoint_facts(newest_intact(folder.checkpoints, notify))
    else:
        facts.append(("checkpoint", "none yet"))
    results = folder.path / "results.json"
    if results.is_file():
        facts.append(("results", _results(results)))
    return facts


def _results(path: Path) -> str:
    """The figures of a results.json. A damaged one keeps nobody from anything, so it is told and not refused."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        quality = f"PSNR {figures['psnr']:.2f} dB, SSIM {figures['ssim']:.4f}"
        views = f"{figures['views']} {figures['split']} view" + ("" if figures["views"] == 1 else "s")
        return f"at iteration {figures['iteration']}: {quality} on {views}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{path} is damaged: write it afresh with gs-train eval {path.parent}"


def _checkpoint_facts(checkpoint: Checkpoint) -> Facts:
    model = checkpoint.state["model"]
    return [
        ("checkpoint", f"{checkpoint.path}, sound"),
        ("iteration", f"{checkpoint.iteration:,}"),
        ("Gaussians", f"{len(model['parameters']['xyz']):,}"),
        ("SH degree", f"{model['active_sh_degree']} active"),
        ("written with", f"gs-train {checkpoint.versions['gs_train']}, torch {checkpoint.versions['torch']}"),
    ]


def _splat_facts(data: SplatData) -> Facts:
    if len(data) == 0:
        return [("Gaussians", "0"), ("SH degree", str(data.sh_degree))]
    arrays = (data.xyz, data.f_dc, data.f_rest, data.opacity, data.scaling, data.rotation)
    finite = np.ones(len(data), dtype=bool)
    for array in arrays:
        finite &= np.isfinite(array).reshape(len(data), -1).all(axis=1)
    facts = [("Gaussians", f"{len(data):,}"), ("SH degree", str(data.sh_degree))]
    if data.antialiased:
        facts.append(("trained", "antialiased: render it that way"))
    if not finite.all():
        facts.append(("damaged", f"{int((~finite).sum()):,} Gaussians with NaN or infinite values"))
    if finite.any():
        # Logits and logarithms of any size are a splat's own business; those past a float's range become 0 or infinite.
        with np.errstate(over="ignore"):
            opacity = 1.0 / (1.0 + np.exp(-data.opacity[finite].astype(np.float64)))
            scale = np.exp(data.scaling[finite].astype(np.float64))
        facts += [
            ("box", f"{_triple(data.xyz[finite].min(axis=0))} to {_triple(data.xyz[finite].max(axis=0))}"),
            ("opacity", f"median {np.median(opacity):.3f}"),
            ("scale", f"median {np.median(scale):.4g} world units"),
        ]
    return facts


def _triple(point: NDArray[np.float32]) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in point) + ")"
