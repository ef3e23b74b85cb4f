"""``gs-train info``: prints the facts of a scene, a run, a checkpoint or a splat file, and checks it.

It changes nothing. A path without a fault is accepted by the other subcommands.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from gs_train.config.toml import read_config
from gs_train.console import notify, print_facts, print_json
from gs_train.errors import UserError, combine_faults
from gs_train.formats.registry import is_splat_file
from gs_train.formats.splat_data import SplatStream
from gs_train.run.folder import RunFolder
from gs_train.run.open import OpenedSplat, open_run, open_splat
from gs_train.run.splat_frame import stream_splat
from gs_train.scene.agreement import check_agreement
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.photos.decode import image_faults
from gs_train.scene.split import TooFewViewsError
from gs_train.scene.types import Scene, View
from gs_train.scene.unprepared import find_unprepared

if TYPE_CHECKING:
    # Checkpoints need torch, which takes seconds to import; scenes and splat files do not.
    from gs_train.run.checkpoint import Checkpoint

Facts = list[tuple[str, str]]
FAULT = "fault"
"""Name of each fact that makes a scene unfit for training."""
_KINDS = "name a scene folder, a run folder, a checkpoint (.pt) or a splat file"


@dataclass(frozen=True, kw_only=True)
class InfoCommand:
    """Describe and check a scene, a run, a checkpoint or a splat file."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """Scene (a folder or a transforms .json), run folder, checkpoint (.pt) or splat file."""

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the result as one JSON object on stdout, and all other text on stderr. Use it in scripts."""

    def run(self) -> int:
        """Print the facts; returns 2 for a scene with faults, all of which are printed."""
        facts = describe(self.path, notify)
        if self.json:
            print_json(facts_as_json(facts))
        else:
            print_facts(facts)
        return 2 if any(name == FAULT for name, _ in facts) else 0


def describe(path: Path, notify: Callable[[str], None]) -> Facts:
    """Facts about ``path``, the most important first.

    Args:
        path: scene (a folder or a transforms .json), run folder, checkpoint (.pt) or splat file.
        notify: takes remarks about oddities that are no faults.

    Raises:
        UserError: the path does not exist, is none of the four, or fails its checks.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: {_KINDS}.")
    if is_splat_file(path) and path.suffix != ".pt":
        return _splat_facts(stream_splat(path, notify)[0])
    if path.is_dir() and not RunFolder(path).is_run() and any(RunFolder(folder).is_run() for folder in path.iterdir()):
        raise UserError(f"{path} holds runs and is not a run itself: name one of the folders in it.")
    if path.is_dir():
        return _run_facts(RunFolder(path), notify) if RunFolder(path).is_run() else _scene_facts(path, notify)
    if path.suffix == ".json":
        return _scene_facts(path, notify)
    if path.suffix != ".pt":
        none = f"{path} is none of the files that info describes: {_KINDS}."
        raise find_unprepared(path) or UserError(none)
    opened = open_splat(path, notify)
    assert opened.checkpoint is not None
    return _checkpoint_facts(opened, opened.checkpoint)


def _scene_facts(path: Path, notify: Callable[[str], None]) -> Facts:
    """The content of a scene and every fault that makes it unfit for training. Decodes all photos to find faults."""
    faults: list[UserError] = []
    try:
        scene = load_scene(path, SceneConfig(), faults.append)
    except UserError as fault:
        if not faults:
            raise
        return [
            ("scene", str(path)),
            *_fault_facts(faults if isinstance(fault, TooFewViewsError) else [*faults, fault]),
        ]
    for notice in scene.notices:
        notify(notice)
    views = (*scene.train_views, *scene.test_views)
    faults += image_faults(views)
    if not faults:
        _attempt_agreement(scene, faults.append, notify)
    sizes = Counter(f"{view.camera.width}x{view.camera.height}" for view in views)
    lenses = Counter(
        f"{view.distorted_camera.model}, undistorted when read" if view.distorted_camera else "no distortion"
        for view in views
    )
    return [
        ("scene", str(path)),
        ("views", f"{len(scene.train_views)} to train on, {len(scene.test_views)} to test on"),
        ("training size", ", ".join(f"{size} px ({count})" for size, count in sizes.most_common())),
        ("lens", ", ".join(f"{lens} ({count})" for lens, count in lenses.most_common())),
        *_mask_facts(views),
        ("points", f"{len(scene.points.xyz):,}"),
        ("extent", f"{scene.extent:.4g} world units"),
        *_fault_facts(faults),
    ]


def _attempt_agreement(scene: Scene, on_fault: Callable[[UserError], None], notify: Callable[[str], None]) -> None:
    try:
        check_agreement(scene, scene.points, str(scene.path), notify)
    except UserError as fault:
        on_fault(fault)


def _mask_facts(views: Sequence[View]) -> Facts:
    hidden = [view.mask.hidden for view in views if view.mask is not None]
    return [("masks", f"{len(hidden)}, which hide {100 * np.mean(hidden):.1f} % of their photos")] if hidden else []


def facts_as_json(facts: Facts) -> dict[str, Any]:
    """The facts by name, whole numbers as numbers, and the list of ``faults``."""
    values = {
        name: int(value.replace(",", "")) if re.fullmatch(r"\d[\d,]*", value) else value
        for name, value in facts
        if name != FAULT
    }
    return {**values, "faults": [value for name, value in facts if name == FAULT]}


def _fault_facts(faults: list[UserError]) -> Facts:
    """Each fault once: a faulty camera reports the same fault for each of its photos, and photos may share a fault."""
    return [(FAULT, str(fault)) for fault in combine_faults(faults)]


def _run_facts(folder: RunFolder, notify: Callable[[str], None]) -> Facts:
    from gs_train.run.checkpoint import list_checkpoints

    config, scene = read_config(folder.config)
    facts = [
        ("run", str(folder.path)),
        ("scene", "not named in config.toml" if scene is None else str(scene)),
        ("iterations", f"{config.iterations:,} asked for"),
    ]
    opened = open_run(folder.path, notify) if list_checkpoints(folder.checkpoints) else None
    if opened is None or opened.checkpoint is None:
        newest = folder.newest_splat()
        facts.append(("checkpoint", "none yet" if newest is None else f"none; the run's splat is {newest[1]}"))
    else:
        facts += _checkpoint_facts(opened, opened.checkpoint)
    results = folder.path / "results.json"
    if results.is_file():
        facts.append(("results", _results(results)))
    return facts


def _results(path: Path) -> str:
    """The figures of a results.json. A damaged file blocks no other command, so this is a fact, not an error."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        quality = f"PSNR {figures['psnr']:.2f} dB, SSIM {figures['ssim']:.4f}"
        views = f"{figures['views']} {figures['split']} view" + ("" if figures["views"] == 1 else "s")
        return f"at iteration {figures['iteration']}: {quality} on {views}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{path} is damaged: write it again with gs-train eval {quote(str(path.parent))}"


def _checkpoint_facts(opened: OpenedSplat, checkpoint: Checkpoint) -> Facts:
    model = checkpoint.state["model"]
    return [
        ("checkpoint", f"{checkpoint.path}, intact"),
        ("iteration", f"{checkpoint.iteration:,}"),
        ("Gaussians", f"{len(model['parameters']['xyz']):,}"),
        ("SH degree", f"{model['active_sh_degree']} active"),
        ("background", str(opened.background_name())),
        ("written with", f"gs-train {checkpoint.versions['gs_train']}, torch {checkpoint.versions['torch']}"),
    ]


def _splat_facts(stream: SplatStream) -> Facts:
    """The content of a splat. Only opacities and scales are in memory for all Gaussians, 16 bytes for each."""
    facts = [("Gaussians", f"{stream.count:,}"), ("SH degree", str(stream.sh_degree))]
    if stream.count == 0:
        return facts
    opacity, scaling = np.empty(stream.count, np.float32), np.empty((stream.count, 3), np.float32)
    low, high, found = np.full(3, np.inf, np.float32), np.full(3, -np.inf, np.float32), 0
    for whole in stream.pieces():
        piece = whole.keep(whole.is_finite())
        opacity[found : found + len(piece)], scaling[found : found + len(piece)] = piece.opacity[:, 0], piece.scaling
        low = np.minimum(low, piece.xyz.min(axis=0, initial=np.inf))
        high = np.maximum(high, piece.xyz.max(axis=0, initial=-np.inf))
        found += len(piece)
    if stream.antialiased:
        facts.append(("trained", "antialiased: render it that way"))
    if found < stream.count:
        facts.append(("damaged", f"{stream.count - found:,} Gaussians with NaN or infinite values"))
    if found:
        # Logits and logarithms may have any size; beyond a float's range the activations become 0 or infinite.
        with np.errstate(over="ignore"):
            middle_opacity = (1.0 / (1.0 + np.exp(-_middle(opacity[:found])))).mean()
            middle_scale = np.exp(_middle(scaling[:found].reshape(-1))).mean()
        facts += [
            ("box", f"{_triple(low)} to {_triple(high)}"),
            ("opacity", f"median {middle_opacity:.3f}"),
            ("scale", f"median {middle_scale:.4g} world units"),
        ]
    return facts


def _middle(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The one or two values whose mean is the median; reorders ``values``. The median of a rising function is the mean
    of its values there."""
    around = [(len(values) - 1) // 2, len(values) // 2]
    values.partition(around)
    return values[around].astype(np.float64)


def _triple(point: NDArray[np.float32]) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in point) + ")"
