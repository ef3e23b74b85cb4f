"""Checkpoints: atomic writes, detection of damage, refusal of other scenes and formats, and the newest K are kept."""

from __future__ import annotations

import errno
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pytest
import torch

from gs_train.atomic_write import atomic_write, atomic_write_text
from gs_train.config.settings import TrainConfig
from gs_train.density.classic import ClassicDensity
from gs_train.density.types import DensityPlan
from gs_train.errors import UserError
from gs_train.run import checkpoint as module
from gs_train.run.checkpoint import (
    FORMAT,
    DamagedCheckpoint,
    check_scene,
    list_checkpoints,
    newest_intact,
    read_checkpoint,
    save_checkpoint,
    scene_fingerprint,
)
from gs_train.run.checkpoint_file import write_content
from gs_train.scene.extent import pixel_width
from gs_train.scene.frame import Frame
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.types import Scene
from gs_train.training.corrections import Corrections
from gs_train.training.log import TrainLog, cut_metrics
from gs_train.training.start import start_state
from gs_train.training.state import TrainState

CONFIG = TrainConfig(iterations=50, sh_degree=1).resolved()


@pytest.fixture(scope="module")
def scene(tiny_scene: Path) -> Scene:
    return load_scene(tiny_scene, SceneConfig())


def fresh_state(scene: Scene, config: TrainConfig = CONFIG) -> TrainState:
    """The state before the first step. Classic density control renders no views, so it gets none."""
    device, no_views = torch.device("cpu"), cast(Any, ())
    return start_state(scene, config, device, no_views, Corrections(scene, config, device), ClassicDensity)


@pytest.fixture
def state(scene: Scene) -> TrainState:
    """A state with Adam moments, a drawn view order and smoothed metrics, made without a render."""
    state = fresh_state(scene)
    adam = state.model.optimizer
    assert adam is not None
    sum(parameter.sum() for parameter in state.model.parameters.values()).backward()  # type: ignore[union-attr]
    adam.step()
    adam.zero_grad()
    state.iteration = 7
    state.next_view(8)
    state.smooth("psnr", 20.0)
    state.smooth("psnr", 30.0)
    return state


def test_the_rate_of_the_positions_has_the_unit_of_the_settings(scene: Scene) -> None:
    """In pixels of the median depth by default, in extents as the original's; positions of a splat count as well."""
    width = pixel_width(scene.train_views, scene.points.xyz, scene.extent)
    state = fresh_state(scene)
    assert state.model.spatial_lr_scale == pytest.approx(width, rel=1e-5) and width < 0.1 * scene.extent
    assert state.model.update_learning_rate(0) == pytest.approx(CONFIG.optimizer.xyz_lr_init * width)
    in_extents = replace(CONFIG, optimizer=replace(CONFIG.optimizer, xyz_lr_unit="extent"))
    assert fresh_state(scene, in_extents).model.spatial_lr_scale == scene.extent
    splat, device = state.model.to_splat_data(), torch.device("cpu")
    controls = (cast(Any, ()), Corrections(scene, CONFIG, device), ClassicDensity)
    again = start_state(scene, CONFIG, device, *controls, splat=splat)
    assert again.model.spatial_lr_scale == pytest.approx(width, rel=1e-5)


def save(folder: Path, state: TrainState, keep: int = 2) -> Path:
    return save_checkpoint(folder, state.state_dict(), config=CONFIG, fingerprint="print", frame=Frame(), keep=keep)


def equal(left: Any, right: Any) -> bool:
    """Deep equality of state dicts, tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    return bool(left == right)


def test_loading_restores_the_saved_state(tmp_path: Path, state: TrainState, scene: Scene) -> None:
    checkpoint = read_checkpoint(save(tmp_path, state))
    assert equal(checkpoint.state, state.state_dict())
    fresh = fresh_state(scene)
    assert not equal(fresh.state_dict(), state.state_dict())
    fresh.load_state_dict(checkpoint.state)
    assert equal(fresh.state_dict(), state.state_dict())
    assert checkpoint.iteration == 7
    assert checkpoint.scene_fingerprint == "print"
    assert checkpoint.config["density"]["interval"] == 100
    assert checkpoint.versions["torch"] == torch.__version__


def test_a_loaded_state_shares_no_memory_with_the_saved_one(tmp_path: Path, state: TrainState, scene: Scene) -> None:
    content = read_checkpoint(save(tmp_path, state)).state
    before = content["model"]["parameters"]["xyz"].clone()
    fresh = fresh_state(scene)
    fresh.load_state_dict(content)
    with torch.no_grad():
        fresh.model.xyz.add_(1.0)
    fresh.next_view(8)
    assert torch.equal(content["model"]["parameters"]["xyz"], before)
    assert len(content["view_order"]) == 7


def test_each_pass_draws_every_view_once_in_another_order(scene: Scene) -> None:
    state = fresh_state(scene)
    first, second = ([state.next_view(8) for _ in range(8)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second


def test_another_seed_draws_another_order(scene: Scene) -> None:
    orders = {fresh_state(scene, replace(CONFIG, seed=seed)).next_view(8) for seed in range(20)}
    assert len(orders) > 1


def test_the_newest_checkpoints_are_kept(tmp_path: Path, state: TrainState) -> None:
    for iteration in (5, 10, 1_000_000, 1_000_005):
        state.iteration = iteration
        save(tmp_path, state, keep=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "iteration_1000005.pt",
        "iteration_1000000.pt",
        "iteration_000010.pt",
    ]


def test_saving_deletes_newer_checkpoints_that_a_resume_skipped(tmp_path: Path, state: TrainState) -> None:
    (tmp_path / "iteration_000300.pt").write_bytes(b"damaged")
    save(tmp_path, state)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["iteration_000007.pt"]


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("iteration_x.pt", ".iteration_000001.pt.7.tmp", "iteration_000001.pt.bak"):
        (tmp_path / name).touch()
    assert list_checkpoints(tmp_path) == []


def test_a_plan_beyond_the_limit_is_refused(state: TrainState) -> None:
    count, before = len(state.model), state.model.xyz.detach().clone()
    plan = DensityPlan(clone=torch.arange(10))
    with pytest.raises(
        ValueError, match=rf"ClassicDensity plans {count + 10} Gaussians but max_gaussians is {count + 9}"
    ):
        state.apply_plan(plan, replace(CONFIG, max_gaussians=count + 9))
    assert torch.equal(state.model.xyz, before)
    state.apply_plan(plan, replace(CONFIG, max_gaussians=count + 10))
    assert len(state.model) == count + 10


# ---- damage


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    """Change one bit of a tensor's content, which torch itself does not notice."""
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "damage", [cut, flip, lambda data: b"", lambda data: b"not a checkpoint", lambda data: data[:-1]]
)
def test_damage_is_detected_and_the_checkpoint_before_is_used(
    tmp_path: Path, state: TrainState, damage: Callable[[bytes], bytes]
) -> None:
    first = save(tmp_path, state)
    state.iteration = 9
    second = save(tmp_path, state)
    second.write_bytes(damage(second.read_bytes()))
    with pytest.raises(DamagedCheckpoint):
        read_checkpoint(second)
    message: list[str] = []
    assert newest_intact(tmp_path, message.append).path == first
    assert len(message) == 1
    assert str(second) in message[0]


def test_without_an_intact_checkpoint_the_error_says_how_to_start_again(tmp_path: Path, state: TrainState) -> None:
    message: list[str] = []
    afresh = re.escape(f"gs-train train SCENE --out {tmp_path} --overwrite")
    folder = tmp_path / "checkpoints"
    with pytest.raises(UserError, match=f"has no checkpoint: .*{afresh}"):
        newest_intact(folder, message.append)
    save(folder, state).write_bytes(b"")
    with pytest.raises(
        UserError, match=rf"no intact checkpoint \(iteration_000007.pt, the only one, is damaged\): .*{afresh}"
    ):
        newest_intact(folder, message.append)
    assert message == []
    (folder / "iteration_000009.pt").write_bytes(b"")
    with pytest.raises(UserError, match="all 2 are damaged"):
        newest_intact(folder, message.append)
    assert message == [f"{folder / 'iteration_000009.pt'} is damaged: trying the one before."]


def without(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A copy of nested dicts without the entry at the path ``keys``."""
    first, *rest = keys
    if not rest:
        return {key: value for key, value in content.items() if key != first}
    return {**content, first: without(content[first], *rest)}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: torch.zeros(3),
        lambda content: {"some": "dict"},
        lambda content: {**content, "state": {}},
        lambda content: {**content, "state": {"iteration": 9}},
        lambda content: {**content, "versions": None},
        lambda content: without(content, "versions", "torch"),
        lambda content: without(content, "state", "model"),
        lambda content: without(content, "state", "view_generator"),
        lambda content: without(content, "state", "model", "active_sh_degree"),
        lambda content: without(content, "state", "model", "parameters", "opacity"),
    ],
)
def test_a_torch_file_with_other_content_is_damaged(
    tmp_path: Path, state: TrainState, change: Callable[[Any], Any]
) -> None:
    first = save(tmp_path, state)
    second = tmp_path / "iteration_000009.pt"
    torch.save(change(torch.load(first, weights_only=True)), second)
    with pytest.raises(DamagedCheckpoint):
        read_checkpoint(second)
    assert newest_intact(tmp_path, lambda _: None).path == first


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_every_error_of_a_decompressor_means_damage(tmp_path: Path, method: int) -> None:
    path = tmp_path / "iteration_000001.pt"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a", bytes(range(256)) * 40)
    data = bytearray(path.read_bytes())
    data[31:71] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(DamagedCheckpoint):
        read_checkpoint(path)


def test_a_checkpoint_without_read_permission_is_not_skipped(
    tmp_path: Path, state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, state)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(PermissionError):
        newest_intact(tmp_path, print)


class Malice:
    """An object whose pickle runs code when it is loaded."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("ran",))


def test_no_code_in_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": Malice()}, tmp_path / "iteration_000001.pt")
    with pytest.raises(DamagedCheckpoint):
        read_checkpoint(tmp_path / "iteration_000001.pt")
    assert not (tmp_path / "ran").exists()


def test_a_newer_format_is_refused_and_not_skipped(
    tmp_path: Path, state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, state)
    state.iteration = 9
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT", FORMAT + 1)
        save(tmp_path, state)
    with pytest.raises(
        UserError, match=r"iteration_000009.pt was written by a newer gs-train .*: update gs-train, or start"
    ):
        newest_intact(tmp_path, print)


def test_an_older_format_is_refused_in_one_sentence(
    tmp_path: Path, state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT", 1)
        save(tmp_path, state)
    with pytest.raises(UserError) as caught:
        newest_intact(tmp_path, print)
    assert str(caught.value) == (
        f"{tmp_path / 'iteration_000007.pt'} was written by an older gs-train (checkpoint format 1, this version reads "
        f"format {FORMAT}): use that version, or start again with gs-train train SCENE --out {tmp_path.parent} "
        "--overwrite."
    )


def test_a_file_without_a_checksum_is_of_an_older_format_or_damaged(tmp_path: Path, state: TrainState) -> None:
    """Formats 1 and 2 had no checksum."""
    path = save(tmp_path, state)
    content = torch.load(path, weights_only=True)
    torch.save(content, path)
    with pytest.raises(DamagedCheckpoint, match="no checksum"):
        read_checkpoint(path)
    torch.save(content | {"format": 2, "state": {"optimizer": ({0: (0.9, 0.999)}, None)}}, path)
    with pytest.raises(UserError, match=r"older gs-train \(checkpoint format 2, this version reads format 3\)"):
        read_checkpoint(path)


def test_the_state_of_another_density_controller_is_refused(state: TrainState, scene: Scene) -> None:
    saved = state.state_dict() | {"density_controller": "LargestFirst"}
    with pytest.raises(UserError, match="density controller LargestFirst, not ClassicDensity"):
        fresh_state(scene).load_state_dict(saved)


# ---- the scene of a checkpoint


def test_fingerprint_of_the_same_files_is_the_same(tiny_scene: Path, scene: Scene) -> None:
    assert scene_fingerprint(load_scene(tiny_scene, SceneConfig())) == scene_fingerprint(scene)


def test_fingerprint_depends_on_names_sizes_poses_and_the_split(tiny_scene: Path, scene: Scene) -> None:
    view = scene.train_views[0]
    moved = view.world_to_camera.copy()
    moved[0, 3] += 1e-4
    nudged = view.world_to_camera + 1e-12
    variants = [
        replace(scene, train_views=(replace(view, name="other.png"), *scene.train_views[1:])),
        replace(scene, train_views=(replace(view, camera=replace(view.camera, width=1)), *scene.train_views[1:])),
        replace(scene, train_views=(replace(view, world_to_camera=moved), *scene.train_views[1:])),
        load_scene(tiny_scene, SceneConfig(test_every=0)),
    ]
    prints = {scene_fingerprint(scene), *map(scene_fingerprint, variants)}
    assert len(prints) == 5
    same = replace(scene, train_views=(replace(view, world_to_camera=nudged), *scene.train_views[1:]))
    assert scene_fingerprint(same) == scene_fingerprint(scene)
    assert not np.array_equal(nudged, view.world_to_camera)


def test_a_checkpoint_of_another_scene_is_refused(tmp_path: Path, state: TrainState, scene: Scene) -> None:
    checkpoint = read_checkpoint(save(tmp_path, state))
    with pytest.raises(UserError, match="another scene"):
        check_scene(checkpoint, scene, Frame())
    check_scene(replace(checkpoint, scene_fingerprint=scene_fingerprint(scene)), scene, Frame())


# ---- atomic writes


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write_text(path, "before")

    def half(file: BinaryIO) -> None:
        file.write(b"aft")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        atomic_write(path, half)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_while_saving_leaves_the_earlier_checkpoint(
    tmp_path: Path, state: TrainState, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    first = save(tmp_path, state)
    before = first.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    state.iteration = 9
    with monkeypatch.context() as patch:
        patch.setattr(os if failing == "fsync" else Path, failing, full)
        with pytest.raises(OSError, match=re.escape(os.strerror(errno.ENOSPC))):
            save(tmp_path, state)
    assert list(tmp_path.iterdir()) == [first]
    assert first.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, the device that is always full, is Linux's")
def test_a_full_disk_while_torch_writes_is_reported_as_a_full_disk(state: TrainState) -> None:
    with open("/dev/full", "wb") as file, pytest.raises(OSError, match=re.escape(os.strerror(errno.ENOSPC))) as caught:
        try:
            write_content({"tensor": torch.zeros(1_000_000)}, file)
        finally:
            _discard(file)
    assert caught.value.errno == errno.ENOSPC


def _discard(file: BinaryIO) -> None:
    """Redirect ``file`` to the null device, so that closing it writes its buffer without a second error."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, file.fileno())
    os.close(null)


# ---- metrics.jsonl


def test_metrics_after_the_checkpoint_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    cut_metrics(path, 20)
    lines = [f'{{"iteration": {iteration}}}\n' for iteration in (10, 20, 30)]
    path.write_text("".join(lines) + '{"iteration": 2')
    cut_metrics(path, 20)
    assert path.read_text() == "".join(lines[:2])


@pytest.mark.parametrize(
    "tail", [b"\xff\xfe\x80garbage", b"\0" * 40 + b"\n", b"no json\n", b"[" * 100_000 + b"\n", b"\xff{}\n"]
)
def test_garbage_in_metrics_is_dropped(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    line = b'{"iteration": 10}\n'
    path.write_bytes(line + tail)
    cut_metrics(path, 20)
    assert path.read_bytes() == line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, the device that is always full, is Linux's")
def test_metrics_on_a_full_disk_stop_the_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    with (
        pytest.raises(OSError, match=re.escape(os.strerror(errno.ENOSPC))),
        TrainLog(path, first=0, last=10, progress=False) as log,
    ):
        log.record({"iteration": 1, "gaussians": 3}, loss=0.1, psnr=20.0)
    shutil.rmtree(tmp_path)


def test_a_state_with_non_finite_values_is_not_saved(tmp_path: Path, state: TrainState) -> None:
    sound = save(tmp_path, state)
    with torch.no_grad():
        state.model.scaling[3, 1] = float("nan")
    state.iteration = 8
    with pytest.raises(FloatingPointError, match=r"1 of \d+ values of scaling are not finite at iteration 8"):
        save(tmp_path, state)
    assert list_checkpoints(tmp_path) == [sound]


def test_saving_deletes_leftovers_of_a_killed_save(tmp_path: Path, state: TrainState) -> None:
    leftover = tmp_path / ".iteration_000005.pt.123.tmp"
    leftover.write_bytes(b"half")
    save(tmp_path, state)
    assert not leftover.exists()
