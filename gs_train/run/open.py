"""Opens a splat from any of its homes: a run folder, a checkpoint or a splat file.

Every command and script that shows, measures or converts a splat starts with ``open_splat``. torch is imported on
demand, because ``gs-train info FILE`` answers without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gs_train.config.settings import TrainConfig
from gs_train.config.toml import read_config
from gs_train.errors import UserError
from gs_train.formats.registry import is_splat_file, read_splat
from gs_train.formats.splat_data import SplatData
from gs_train.run.folder import RunFolder
from gs_train.run.splat_frame import moved, read_offset
from gs_train.scene.frame import Frame
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.types import Scene

if TYPE_CHECKING:
    import torch

    from gs_train.model.gaussians import GaussianModel
    from gs_train.render.select import Selection
    from gs_train.run.checkpoint import Checkpoint


def _silent(_sentence: str) -> None:
    """Ignore a note."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedSplat:
    """A splat with all that is known about its training."""

    path: Path
    """The path that was opened."""
    content: SplatData | Checkpoint
    """The splat file or the checkpoint, as read."""
    frame: Frame
    """Coordinates of ``content``, of ``model`` and of the scene that ``load_scene`` returns."""
    config: TrainConfig | None = None
    """The config of the run; None for a splat file, and for a checkpoint outside a run folder."""
    scene_path: Path | None = None
    """The scene of the training, if the run's config names it."""
    iteration: int | None = None
    """Training steps taken; None for a splat file."""

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint; None for a splat file."""
        return None if isinstance(self.content, SplatData) else self.content

    @property
    def antialiased(self) -> bool:
        """Whether the splat was trained with antialiasing, and is to be rendered with it."""
        return self.content.antialiased if isinstance(self.content, SplatData) else self.content.config["antialiased"]

    def splat(self, frame: Frame | None = None) -> SplatData:
        """The Gaussians as raw NumPy arrays.

        Args:
            frame: coordinates of the arrays; None for the coordinates of splat files, ``self.frame.of_files``.
        """
        return moved(self._content_splat(), self.frame, self.frame.of_files if frame is None else frame)

    def _content_splat(self) -> SplatData:
        if isinstance(self.content, SplatData):
            return self.content
        from gs_train.model.gaussians import GaussianModel

        model = GaussianModel.from_state_dict(self.content.state["model"])
        return model.to_splat_data(antialiased=self.antialiased)

    def model(self, device: torch.device | str = "cpu") -> GaussianModel:
        """The Gaussians as a model on ``device``, ready to render; coordinates of ``frame``."""
        from gs_train.model.gaussians import GaussianModel

        if isinstance(self.content, SplatData):
            return GaussianModel.from_splat_data(self.content, device=device)
        return GaussianModel.from_state_dict(self.content.state["model"], device)

    def background(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """[3] RGB in 0..1 to render over: the background of the training at evaluation; black for a splat file.

        Raises:
            UserError: the colour was learned, and the run has no checkpoint that holds it.
        """
        import torch

        if isinstance(self.content, SplatData):
            kind = "black" if self.config is None else self.config.background
            if kind == "learned":
                raise UserError(
                    f"{self.path} has a learned background, which only its checkpoints hold, and they are gone: "
                    "export the splat without an evaluation, or train again."
                )
            return torch.full((3,), 1.0 if kind == "white" else 0.0, device=device)
        color: torch.Tensor = self.content.state["background"]["eval_color"]
        return color.to(device)

    def background_name(self) -> str | None:
        """The background of the training in words: black, white, or an RGB triple of 0 to 255; None if unknown."""
        if isinstance(self.content, SplatData):
            return None
        rgb = tuple(round(255 * value) for value in self.background().tolist())
        return {(0, 0, 0): "black", (255, 255, 255): "white"}.get(rgb, f"RGB {rgb}")

    def select_rasterizer(self, device: str | None = None, notify: Callable[[str], None] = _silent) -> Selection:
        """The rasterizer for this splat.

        Args:
            device: as ``--device``; None for the device of the training, or ``auto`` if that is unknown.
            notify: takes notes for the user: the chosen device, compilation of kernels.

        Raises:
            UserError: ``device`` is ``cuda`` and CUDA does not work.
        """
        from gs_train.render.select import select_rasterizer

        trained_on = "auto" if self.config is None else self.config.device
        selection = select_rasterizer(device or trained_on, notify, antialiased=self.antialiased)
        notify(f"Device {selection.reason}.")
        return selection

    def load_scene(self, path: Path | None = None, notify: Callable[[str], None] = _silent) -> Scene:
        """Load the scene of the training, with the settings of the training, in the coordinates of ``frame``.

        Args:
            path: the scene, if it has moved or the config does not name it.
            notify: takes the notices of the scene.

        Raises:
            UserError: the scene is unknown, does not exist, has faults, or is not the scene of the training.
        """
        path = path or self.scene_path
        if path is None:
            raise UserError(f"the scene that {self.path} was trained on is unknown: name it with --scene DIR.")
        if not path.exists():
            raise UserError(f"{path} does not exist: name the scene of {self.path} with --scene DIR.")
        scene = self.frame.apply(load_scene(path, SceneConfig() if self.config is None else self.config.scene))
        for notice in scene.notices:
            notify(notice)
        if self.checkpoint is not None:
            from gs_train.run.checkpoint import check_scene

            check_scene(self.checkpoint, scene, self.frame)
        return scene


def open_splat(path: Path | str, notify: Callable[[str], None] = _silent, **options: Any) -> OpenedSplat:
    """Open a run folder at its newest intact checkpoint, a checkpoint (.pt), or a splat file.

    Args:
        path: the folder or file.
        notify: takes notes for the user, for example the name of a damaged checkpoint.
        options: of the format of a splat file, as for ``read_splat``.

    Raises:
        UserError: the path does not exist, the folder is not a run or has no intact checkpoint, or the file cannot be
            read.
    """
    path = Path(path)
    if path.is_dir() and not is_splat_file(path):
        return open_run(path, notify)
    if not path.exists():
        raise UserError(f"{path} does not exist: name a run folder, a checkpoint (.pt) or a splat file.")
    if path.suffix != ".pt":
        return OpenedSplat(path=path, content=read_splat(path, notify, **options), frame=read_offset(path))
    checkpoint, run = _read_checkpoint(path), RunFolder(path.absolute().parent.parent)
    if not run.is_run():
        return OpenedSplat(path=path, content=checkpoint, frame=checkpoint.frame, iteration=checkpoint.iteration)
    return _of_run(path, checkpoint, run)


def open_run(path: Path, notify: Callable[[str], None] = _silent) -> OpenedSplat:
    """Open a run folder at its newest intact checkpoint, or at its splat if it has no checkpoints any more.

    Raises:
        UserError: the folder is not a run, has no intact checkpoint, or has neither checkpoint nor splat.
    """
    from gs_train.run.checkpoint import list_checkpoints, newest_intact

    run = RunFolder(path)
    run.check_run()
    newest = run.newest_splat()
    if newest is None or list_checkpoints(run.checkpoints):
        return _of_run(path, newest_intact(run.checkpoints, notify), run)
    iteration, splat = newest
    notify(f"{path} has no checkpoint: using {splat}.")
    config, scene_path = read_config(run.config)
    return OpenedSplat(
        path=path,
        content=read_splat(splat),
        frame=read_offset(splat),
        config=config,
        scene_path=scene_path,
        iteration=iteration,
    )


def _of_run(path: Path, checkpoint: Checkpoint, run: RunFolder) -> OpenedSplat:
    config, scene_path = read_config(run.config)
    return OpenedSplat(
        path=path,
        content=checkpoint,
        frame=checkpoint.frame,
        config=config,
        scene_path=scene_path,
        iteration=checkpoint.iteration,
    )


def _read_checkpoint(path: Path) -> Checkpoint:
    from gs_train.run.checkpoint import DamagedCheckpoint, read_checkpoint

    if not path.is_file():
        raise UserError(f"{path} does not exist: name a checkpoint (.pt).")
    try:
        return read_checkpoint(path)
    except DamagedCheckpoint:
        raise UserError(
            f"{path} is damaged or not a checkpoint of gs-train: name another, or the run's folder to open its newest "
            "intact one."
        ) from None
