"""The live view of a training, without viser: wishes and budget, pictures, pauses, and equal results."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_trainings import config_of
from torch import Tensor

from gs_train import train
from gs_train.model.gaussians import GaussianModel
from gs_train.render.select import select_rasterizer
from gs_train.render.types import Rasterizer
from gs_train.run.open import open_splat
from gs_train.scene.load import load_scene
from gs_train.scene.types import View
from gs_train.training.state import TrainState
from gs_train.viewer.live import Curves, LiveView
from gs_train.viewer.pictures import Look, Painter
from gs_train.viewer.wishes import LARGEST_PX, Budget, Due, Slot, Wish, lens_of

LOOK = Look()
BACK = np.eye(4)


def wish_of(view: View) -> Wish:
    return Wish(world_to_camera=view.world_to_camera, lens=view.camera)


def any_wish(width: int = 640, height: int = 480) -> Wish:
    return Wish(world_to_camera=BACK, lens=lens_of(50, width, height))


# ---- wishes and budget ----


def test_a_newer_wish_replaces_an_older_one() -> None:
    slot, (first, second) = Slot(), (any_wish(), any_wish())
    slot.ask(1, first)
    slot.ask(1, second)
    due = slot.next_due(0, LOOK, time.monotonic())
    assert due is not None and due.wish is second
    slot.finish(due, 0, LOOK, time.monotonic())
    assert slot.next_due(0, LOOK, time.monotonic()) is None or not due.at_rest


def test_the_client_that_has_waited_longest_is_next_and_a_gone_one_is_forgotten() -> None:
    slot, now = Slot(), time.monotonic()
    slot.ask(1, any_wish())
    slot.ask(2, any_wish())
    drawn = []
    for step in range(4):
        due = slot.next_due(100 * step, LOOK, now + step)
        assert due is not None
        drawn.append(due.client)
        slot.finish(due, 100 * step, LOOK, now + step)
    assert drawn == [1, 2, 1, 2]
    slot.forget(1)
    slot.finish(due, 0, LOOK, now)
    assert slot.is_watched()
    slot.forget(2)
    assert not slot.is_watched() and slot.next_due(10**6, LOOK, now + 100) is None


def test_a_moving_camera_gets_small_pictures_and_a_full_one_at_rest() -> None:
    slot = Slot()
    slot.ask(1, any_wish())
    due = slot.next_due(0, LOOK, time.monotonic())
    assert due is not None and due.at_rest and due.scale == 1.0
    slot.ask(1, any_wish())
    now = time.monotonic()
    due = slot.next_due(0, LOOK, now)
    assert due is not None and not due.at_rest and due.scale == 0.5 and due.jpeg_quality == 70
    slot.finish(due, 0, LOOK, now)
    assert slot.next_due(0, LOOK, now + 0.05) is None
    due = slot.next_due(0, LOOK, now + 0.5)
    assert due is not None and due.at_rest and due.jpeg_quality == 88


def test_a_camera_at_rest_gets_a_new_picture_after_20_iterations_or_a_second() -> None:
    slot, now = Slot(), time.monotonic()
    slot.ask(1, any_wish())
    due = slot.next_due(100, LOOK, now)
    assert due is not None
    slot.finish(due, 100, LOOK, now)
    wanted = {(100, 0.1): False, (119, 0.9): False, (120, 0.1): True, (101, 1.0): True, (100, 1e4): False}
    found = {key: slot.next_due(key[0], LOOK, now + key[1]) is not None for key in wanted}
    assert found == wanted
    assert slot.next_due(100, replace(LOOK, what="depth"), now) is not None


def test_the_budget_leaves_the_rest_of_the_time_to_the_training() -> None:
    budget = Budget()
    assert budget.allows(0.0)
    budget.spend(10.0, 10.1, 0.25)
    assert not budget.allows(10.39) and budget.allows(10.41)
    budget.spend(20.0, 20.1, 0.9)
    assert not budget.allows(20.105) and budget.allows(20.12)


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (640, 480), (100_000, 50), (5000, 9000)])
def test_sizes_and_angles_are_clamped(size: tuple[int, int]) -> None:
    for fov in (-10.0, 50.0, 179.9):
        for scale in (0.5, 1.0):
            camera = Wish(world_to_camera=BACK, lens=lens_of(fov, *size)).camera(scale)
            assert 16 <= min(camera.width, camera.height) and max(camera.width, camera.height) <= LARGEST_PX
            degrees = np.degrees(2 * np.arctan(camera.height / (2 * camera.fy)))
            assert 4.99 < degrees < 150.01


def test_curves_have_one_point_per_logged_step_and_a_limit() -> None:
    curves = Curves()
    curves.add(1, {})
    for iteration in range(1, 5001):
        # The running means change on logged steps only.
        logged = iteration // 5
        curves.add(iteration, {"loss": 1 / (1 + logged), "psnr": float(logged)})
    assert 100 < len(curves.iterations) == len(curves.loss) == len(curves.psnr) <= 400
    assert curves.iterations == sorted(set(curves.iterations)) and curves.iterations[-1] > 4900
    assert all(loss == 1 / (1 + i // 5) for i, loss in zip(curves.iterations, curves.loss, strict=True))


# ---- pictures ----


@pytest.fixture(scope="module")
def cpu() -> Rasterizer:
    return select_rasterizer("cpu", lambda _: None, depth=True).rasterizer


def paint(
    rasterizer: Rasterizer, model: GaussianModel, view: View, look: Look, scale: float = 1.0
) -> NDArray[np.uint8]:
    picture = Painter(rasterizer).paint(model, wish_of(view), look, lambda: torch.zeros(3), scale)
    assert picture is not None
    return picture


def test_pictures_show_the_model_and_leave_it_unchanged(tiny_run: Path, cpu: Rasterizer) -> None:
    opened = open_splat(tiny_run)
    model, view = opened.model(), opened.load_scene().train_views[0]
    before = {name: value.detach().clone() for name, value in model.parameters.items()}
    degree, random = model.active_sh_degree, torch.random.get_rng_state()
    pictures = {what: paint(cpu, model, view, Look(what=what)) for what in ("colour", "depth", "alpha", "centres")}
    pose = torch.from_numpy(view.world_to_camera).float()
    with torch.no_grad():
        output = cpu.render(model, view.camera, pose, torch.zeros(3))
    assert np.abs(pictures["colour"] - 255 * output.image.clamp(0, 1).numpy()).max() <= 0.5001
    assert np.abs(pictures["alpha"][..., 1] - 255 * output.alpha.numpy()).max() <= 0.5001
    assert len({picture.tobytes() for picture in pictures.values()}) == 4
    assert all(picture.std() > 5 for picture in pictures.values())
    half = paint(cpu, model, view, LOOK, 0.5)
    assert half.shape == (view.camera.height // 2, view.camera.width // 2, 3)
    white = paint(cpu, model, view, replace(LOOK, background="white"))
    assert white.mean() > pictures["colour"].mean() + 1
    assert model.active_sh_degree == degree and torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.parameters.items())


def test_the_degree_of_the_harmonics_is_limited(cpu: Rasterizer) -> None:
    rest = torch.zeros(1, 15, 3)
    rest[0, :3, 0] = 2.0
    arrays = {"xyz": [[0.0, 0, 3]], "f_dc": [[[0.0, 0, 0]]], "opacity": [[5.0]], "scaling": [[-1.0] * 3]}
    tensors = {name: torch.tensor(value) for name, value in arrays.items()}
    tensors |= {"f_rest": rest, "rotation": torch.tensor([[1.0, 0, 0, 0]])}
    model = GaussianModel(tensors, active_sh_degree=1)
    view = any_wish(64, 64)
    pictures = [
        Painter(cpu).paint(model, view, Look(sh_degree=degree), lambda: torch.zeros(3), 1.0) for degree in (0, 1, 3)
    ]
    assert all(picture is not None for picture in pictures)
    assert (pictures[0] != pictures[1]).any() and np.array_equal(pictures[1], pictures[2])


def test_without_memory_pictures_become_smaller(tiny_run: Path, cpu: Rasterizer) -> None:
    class Scarce:
        """Has no memory for more than 1000 pixels."""

        name = "scarce"
        sizes: list[int] = []  # noqa: RUF012

        def render(self, model: GaussianModel, camera: object, *arguments: object, **options: object) -> object:
            self.sizes.append(camera.width * camera.height)  # type: ignore[attr-defined]
            if self.sizes[-1] > 1000:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return cpu.render(model, camera, *arguments, **options)  # type: ignore[arg-type]

    opened = open_splat(tiny_run)
    model, wish = opened.model(), wish_of(opened.load_scene().train_views[0])
    scarce = Scarce()
    painter = Painter(scarce)  # type: ignore[arg-type]
    picture = painter.paint(model, wish, LOOK, lambda: torch.zeros(3), 1.0)
    assert picture is not None and picture.shape == (24, 32, 3)
    tries = len(scarce.sizes)
    assert painter.paint(model, wish, LOOK, lambda: torch.zeros(3), 1.0) is not None
    assert len(scarce.sizes) == tries + 1
    monkey = Painter(_Broke())  # type: ignore[arg-type]
    assert monkey.paint(model, wish, LOOK, lambda: torch.zeros(3), 1.0) is None


class _Broke:
    name = "broke"

    def render(self, *_arguments: object, **_options: object) -> object:
        raise MemoryError


# ---- between the steps of a training ----


class StandIn:
    """A window with one client that moves its camera before every question, as fast as the training asks."""

    def __init__(self, views: tuple[View, ...]) -> None:
        self.slot, self.views, self.pictures = Slot(), views, list[NDArray[np.uint8]]()
        self.paused, self.told, self.ended = False, list[int](), False
        self.slot.ask(0, wish_of(views[0]))

    def look(self) -> Look:
        whats = ("colour", "depth", "alpha", "centres")
        return Look(what=whats[len(self.pictures) % 4])

    def share(self) -> float:
        return 0.999

    def is_paused(self) -> bool:
        return self.paused

    def show(self, due: Due, picture: NDArray[np.uint8]) -> None:
        self.pictures.append(picture)
        self.slot.ask(0, wish_of(self.views[len(self.pictures) % len(self.views)]))

    def tell(self, iteration: int, gaussians: int, curves: Curves) -> None:
        self.told.append(iteration)

    def answer(self) -> None:
        pass

    def end(self, iteration: int, gaussians: int) -> None:
        self.ended = True


def live_step(live: LiveView, should_stop: object = lambda: False) -> object:
    def step(state: TrainState) -> None:
        live.after_step(state.model, state.iteration, state.background.eval_color, state.smoothed, should_stop)  # type: ignore[arg-type]

    return step


@pytest.mark.parametrize("settings", [{}, {"background": "random", "antialiased": True}], ids=["plain", "random"])
def test_a_client_that_asks_all_the_time_changes_no_bit(
    tiny_scene: Path, tmp_path: Path, settings: dict[str, object], cpu: Rasterizer
) -> None:
    scene, config = load_scene(tiny_scene), config_of("mcmc", 40, device="cpu", save_every=20, **settings)
    window = StandIn(scene.train_views)
    live = LiveView(window, Painter(cpu), notify=pytest.fail)
    train(scene, config, tmp_path / "without", progress=False)
    train(scene, config, tmp_path / "with", after_step=[live_step(live)], progress=False)  # type: ignore[list-item]
    assert len(window.pictures) > 20 and window.told
    for name in ("point_cloud/iteration_40/point_cloud.ply", "cameras.json"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    resumed = replace(config, iterations=60)
    for name in ("with", "without"):
        train(scene, resumed, tmp_path / name, resume=True, progress=False)
    splat = "point_cloud/iteration_60/point_cloud.ply"
    assert (tmp_path / "with" / splat).read_bytes() == (tmp_path / "without" / splat).read_bytes()


def pausing(tiny_run: Path, cpu: Rasterizer) -> tuple[LiveView, StandIn, GaussianModel, list[str]]:
    opened = open_splat(tiny_run)
    window, notes = StandIn(opened.load_scene().train_views), list[str]()
    window.paused = True
    return LiveView(window, Painter(cpu), notify=notes.append), window, opened.model(), notes


def black() -> Tensor:
    return torch.zeros(3)


def test_a_pause_draws_pictures_until_it_ends(tiny_run: Path, cpu: Rasterizer) -> None:
    live, window, model, notes = pausing(tiny_run, cpu)

    def go_on() -> bool:
        window.paused = len(window.pictures) < 4
        return False

    live.after_step(model, 1, black, {}, go_on)
    assert len(window.pictures) == 5 and len(notes) == 1 and "Ctrl-C" in notes[0]


def test_a_signal_ends_a_pause_also_if_nobody_looks(tiny_run: Path, cpu: Rasterizer) -> None:
    live, window, model, _ = pausing(tiny_run, cpu)
    window.slot.forget(0)
    began_s = time.monotonic()
    live.after_step(model, 1, black, {}, lambda: time.monotonic() > began_s + 0.2)
    assert time.monotonic() - began_s < 2 and window.paused and not window.pictures


def test_nothing_is_drawn_if_nobody_looks(tiny_run: Path) -> None:
    window = StandIn(open_splat(tiny_run).load_scene().train_views)
    window.slot.forget(0)
    live = LiveView(window, Painter(_Broke()), notify=pytest.fail)  # type: ignore[arg-type]
    live.after_step(open_splat(tiny_run).model(), 1, pytest.fail, {}, lambda: False)
    assert not window.told


def test_after_the_end_pictures_go_on_until_ctrl_c(tiny_run: Path, cpu: Rasterizer) -> None:
    live, window, model, _ = pausing(tiny_run, cpu)

    def share() -> float:
        if len(window.pictures) == 3:
            raise KeyboardInterrupt
        return 0.25

    window.share = share  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        live.serve(model, 24, black)
    assert window.ended and window.told == [24]


def test_a_model_with_nan_gets_no_picture_and_no_traceback(tiny_run: Path, cpu: Rasterizer) -> None:
    live, window, model, _ = pausing(tiny_run, cpu)
    window.paused = False
    with torch.no_grad():
        model.xyz[0, 0] = float("nan")
    live.after_step(model, 1, black, {}, lambda: False)
    assert not window.pictures
