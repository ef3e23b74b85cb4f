"""``gs-train train``: trains a scene into a run folder, or resumes a run."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from gs_train.commands.registry import GivenFlags
from gs_train.config.settings import TrainConfig
from gs_train.config.toml import DEFAULT_PRESET, load_preset, read_config
from gs_train.console import flush_stdout, notify, print_json, show, stop_signals
from gs_train.errors import UserError, describe_full_disk, describe_gpu_memory
from gs_train.machine import peak_memory
from gs_train.options import MOST_USED, OUTPUT, flag_name, names_where, setting
from gs_train.run.folder import RunFolder
from gs_train.run.lock import check_unlocked
from gs_train.viewer.hosting import LOOPBACK, check_port, check_viser, free_port

if TYPE_CHECKING:
    from gs_train.distributed.processes import Processes
    from gs_train.scene.types import Scene
    from gs_train.training.loop import AfterStep
    from gs_train.training.state import TrainState
    from gs_train.viewer.live import LiveView

_VIEWER_PORT = 8080
_DECLINE_DB = 5.0
"""A larger decline of the PSNR is told."""


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train a scene: photos in, a splat out. The poses of the cameras are computed first if they are unknown."""

    scene: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="SCENE")] = None
    """Scene folder or transforms .json; or a folder of photos or a video, of which a scene is made in RUN/scene. With
    --resume, name it only if the scene has moved."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = setting(None, group=MOST_USED)
    """Folder to write the run to; runs/NAME_OF_SCENE if not given."""
    preset: str = setting(DEFAULT_PRESET, group=MOST_USED)
    """Settings to start from; flags override them. A name (default, fast, quality, classic, paper, tiny) or a .toml
    file; settings that the file leaves out come from default. fast gives a good splat in minutes."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = setting(None, group=MOST_USED)
    """Continue this run from its newest intact checkpoint. A larger --iterations trains past the old end."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = setting(False, group=MOST_USED)
    """Replace the run that --out already holds. Other files in the folder stay."""
    or_resume: tyro.conf.FlagCreatePairsOff[bool] = setting(False, group=MOST_USED)
    """Start, or go on if --out already holds a run of the same settings. Use it where the same command may run again:
    with torchrun --max-restarts, or in a job that a cluster may requeue."""
    json: tyro.conf.FlagCreatePairsOff[bool] = setting(False, group=OUTPUT)
    """Print the result as one JSON object on stdout, and all other text on stderr. Use it in scripts."""
    viewer: tyro.conf.FlagCreatePairsOff[bool] = setting(False, group=OUTPUT)
    """Show the splat in the browser while it trains, and afterwards until Ctrl-C. It needs the extra viewer. The splat
    is the same as without."""
    viewer_host: str | None = setting(None, group=OUTPUT)
    """Address that --viewer serves at; 127.0.0.1, this machine only, if not given. 0.0.0.0 lets every machine of the
    network in."""
    viewer_port: int | None = setting(None, group=OUTPUT)
    """Port of --viewer; 8080 if not given. The next free one is used if it is taken."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    """Settings of the training."""

    @classmethod
    def defaults(cls, given: GivenFlags) -> TrainCommand:
        """The values that flags override: the preset, or with --resume the config and the scene of the run.

        Raises:
            UserError: the preset or the run cannot be read, or a flag excludes --resume.
        """
        resume = given.get("--resume")
        if resume is None:
            preset = given.get("--preset") or DEFAULT_PRESET
            return cls(preset=preset, config=load_preset(preset))
        allowed = [flag_name(name) for name in names_where(TrainConfig, "on_resume")]
        allowed += ["--viewer", "--viewer-host", "--viewer-port"]
        for flag in given:
            if flag not in (*allowed, "--resume", "--help"):
                raise UserError(
                    f"{flag} does not go with --resume, which keeps the settings of the run: leave it out "
                    f"({', '.join(sorted(allowed))} may change)."
                )
        folder = RunFolder(Path(resume))
        folder.check_run()
        config, scene = read_config(folder.config)
        return cls(scene=scene, resume=folder.path, config=config)

    def __post_init__(self) -> None:
        """Raise UserError for flags that exclude each other."""
        if self.or_resume and self.overwrite:
            raise UserError("--or-resume goes on with a run that --overwrite replaces: leave one of them out.")
        if self.viewer and self.json:
            raise UserError("--viewer does not go with --json, because it goes on until Ctrl-C: leave one of them out.")
        for flag, value in (("--viewer-host", self.viewer_host), ("--viewer-port", self.viewer_port)):
            if value is not None and not self.viewer:
                raise UserError(f"{flag} is for the page of --viewer: add --viewer, or leave {flag} out.")
        if self.viewer_port is not None:
            check_port("--viewer-port", self.viewer_port)

    def run(self) -> int:
        """Train; returns 0, or after a signal 128 plus its number."""
        from gs_train.distributed.start import start_processes

        with start_processes(self.config.device) as processes:
            command = self._settled()
            return command._lead(processes) if processes.rank == 0 else command._assist(processes)

    def _settled(self) -> TrainCommand:
        """This command with the right one of --resume and --overwrite in place of --or-resume."""
        if not self.or_resume or self.scene is None:
            return self
        from gs_train.commands.go_on import run_to_go_on

        out = self._out(self.scene)
        found = run_to_go_on(RunFolder(out), self.config)
        if found is None:
            return replace(self, or_resume=False, overwrite=True)
        config, scene = found
        # A scene that train has made of photos is in the run.
        made = scene is not None and scene.resolve() == RunFolder(out).scene.resolve()
        return replace(self, or_resume=False, resume=out, config=config, scene=scene if made else self.scene)

    def _lead(self, processes: Processes) -> int:
        """Train as the only process, or as the first of several."""
        began_s = time.perf_counter()
        place = self._place_of_view()
        out, scene = self._prepare(processes, notify)
        live = None
        if place is not None:
            from gs_train.viewer.open_live import open_live_view

            settings = {name: getattr(self.config, name) for name in ("device", "antialiased", "sh_degree")}
            live = open_live_view(scene, host=place[0], port=place[1], notify=notify, **settings)
        steps: list[int] = []
        after_step: list[AfterStep] = [lambda state: steps.append(state.iteration)]
        if self.config.eval_every:
            after_step.append(_evaluation(self.config, scene, RunFolder(out)))
        with stop_signals(announce=processes.count == 1) as stop_signal:
            if live is not None:
                after_step.append(_live_step(live, lambda: stop_signal() is not None))
            state = self._train(scene, out, processes, notify, after_step, lambda: stop_signal() is not None)
            stopped_by = stop_signal()
        write = notify if self.json else show
        finished = state.iteration == self.config.iterations
        if self.json:
            print_json(_result(state, out, finished))
        if not finished:
            done = f"Stopped after iteration {state.iteration} of {self.config.iterations}."
            write(f"{done} Go on with: gs-train train --resume {quote(str(out))}")
            return 128 + (stopped_by or signal.SIGTERM)
        if steps:
            write(_summary(state, time.perf_counter() - began_s, resumed=self.resume is not None))
            _warn_of_decline(state)
        else:
            write(f"Already at iteration {state.iteration}: give a larger --iterations to go on.")
        _write_next_steps(out, state.iteration, write)
        if live is not None:
            write("The view stays open until Ctrl-C.")
            flush_stdout()
            with suppress(KeyboardInterrupt):
                live.serve(state.model, state.iteration, state.background.eval_color)
        return 0

    def _assist(self, processes: Processes) -> int:
        """Train as one of the other processes. The first one writes and shows everything."""
        out, scene = self._prepare(processes, _silent)
        with stop_signals(announce=False) as stop_signal:
            state = self._train(scene, out, processes, _silent, [], lambda: stop_signal() is not None)
            stopped_by = stop_signal()
        return 0 if state.iteration == self.config.iterations else 128 + (stopped_by or signal.SIGTERM)

    def _train(
        self,
        scene: Scene,
        out: Path,
        processes: Processes,
        tell: Callable[[str], None],
        after_step: Sequence[AfterStep],
        should_stop: Callable[[], bool],
    ) -> TrainState:
        """Train, and turn faults that a user can mend into UserError."""
        from gs_train.training.loop import train

        try:
            return train(
                scene,
                self.config,
                out,
                resume=self.resume is not None,
                overwrite=self.overwrite,
                after_step=after_step,
                should_stop=should_stop,
                notify=tell,
                processes=processes,
            )
        except OSError as error:
            message = _full_disk_message(error, out)
            if message is None:
                raise
            raise UserError(message) from error
        except RuntimeError as error:
            message = _gpu_memory_message(error, out, self.config)
            if message is None:
                raise
            raise UserError(message) from error
        except FloatingPointError as error:
            raise UserError(
                f"training has diverged ({error}): lower the learning rates (--optimizer.* flags) and add --overwrite."
            ) from error

    def _place_of_view(self) -> tuple[str, int] | None:
        """The host and a free port of the live view; None without --viewer."""
        if not self.viewer:
            return None
        check_viser()
        host = LOOPBACK if self.viewer_host is None else self.viewer_host
        port = _VIEWER_PORT if self.viewer_port is None else self.viewer_port
        free = free_port(host, port, "--viewer-host", "--viewer-port")
        if port not in (0, free):
            notify(f"Port {port} is taken: the view is at port {free}.")
        return host, free

    def _out(self, scene: Path) -> Path:
        """The folder of a new run."""
        return self.out or Path("runs") / _scene_name(scene.resolve())

    def _prepare(self, processes: Processes, tell: Callable[[str], None]) -> tuple[Path, Scene]:
        """The run folder, checked, and the scene, loaded: faults show before torch is imported."""
        if self.scene is None:
            if self.resume is None:
                raise UserError(
                    "train needs a SCENE: name its folder, or a run with --resume; gs-train sample DIR writes a scene "
                    "to try."
                )
            raise UserError(
                f"{self.resume / 'config.toml'} does not name the scene of the run: name it with "
                f"gs-train train SCENE --resume {quote(str(self.resume))}."
            )
        out = self.resume or self._out(self.scene)
        check_unlocked(out)
        if self.resume is None:
            RunFolder(out).check_free(overwrite=self.overwrite)
        elif not self.scene.exists():
            raise UserError(
                f"{self.scene} does not exist: name the scene with gs-train train SCENE --resume {quote(str(out))}."
            )

        from gs_train.commands.prepare import make_scene, report
        from gs_train.scene.load import load_scene
        from gs_train.scene.unprepared import Unprepared

        try:
            scene = load_scene(self.scene, self.config.scene)
        except Unprepared as photos:
            if self.resume is not None:
                raise
            folder = RunFolder(out).scene
            command = shlex.join(["gs-train", "prepare", str(photos.source), str(folder)])
            tell(f"{photos.source} has no camera poses: they are computed first, as by `{command}`.")
            if processes.rank == 0:
                report(make_scene(photos.source, folder), notify)
            # The other processes wait.
            processes.any(False)
            scene = load_scene(folder, self.config.scene)
        for notice in scene.notices:
            tell(notice)
        return out, scene


def _silent(_: str) -> None:
    """Tell nothing."""


def _scene_name(scene: Path) -> str:
    """The name of the scene's folder, also if ``scene`` is a file in it, or the name of a video."""
    from gs_train.scene.unprepared import is_video

    if is_video(scene):
        return scene.stem
    return scene.parent.name if scene.is_file() else scene.name


def _full_disk_message(error: OSError, out: Path) -> str | None:
    """The message for a full disk, with the remedy; None for any other error."""
    from gs_train.run.checkpoint import list_checkpoints

    full = describe_full_disk(error, out)
    if full is None:
        return None
    if list_checkpoints(RunFolder(out).checkpoints):
        return f"{full} and go on with gs-train train --resume {quote(str(out))}; earlier files are intact."
    return f"{full} and run the same command again with --overwrite (the run has no checkpoint yet)."


def _gpu_memory_message(error: RuntimeError, out: Path, config: TrainConfig) -> str | None:
    """The message for a GPU without memory, with the remedy; None for any other error."""
    from gs_train.run.checkpoint import list_checkpoints

    full = describe_gpu_memory(error)
    if full is None:
        return None
    remedy = f"lower --max-gaussians (now {config.max_gaussians:,}) or reduce the photos with --resolution"
    if checkpoints := list_checkpoints(RunFolder(out).checkpoints):
        go_on = f"go on from {checkpoints[0].name} with gs-train train --resume {quote(str(out))}"
        return f"{full}: end other programs on the GPU and {go_on}, or {remedy} and train in another --out."
    return f"{full}: {remedy}, add --overwrite, and end other programs on the GPU."


def _evaluation(config: TrainConfig, scene: Scene, folder: RunFolder) -> AfterStep:
    """Measure the test views every ``config.eval_every`` iterations."""
    from gs_train.evaluate.during import evaluation_every
    from gs_train.render.select import select_rasterizer

    selection = select_rasterizer(config.device, lambda _: None, antialiased=config.antialiased)
    measure = evaluation_every(config.eval_every, scene, selection, folder.metrics)
    return lambda state: measure(state.model, state.iteration, state.background.eval_color())


def _live_step(live: LiveView, should_stop: Callable[[], bool]) -> AfterStep:
    """Draw for the page of --viewer after a step."""

    def step(state: TrainState) -> None:
        live.after_step(state.model, state.iteration, state.background.eval_color, state.smoothed, should_stop)

    return step


def _write_next_steps(out: Path, iteration: int, write: Callable[[str], None]) -> None:
    """Tell where the results are, and the commands that most users want next."""
    folder, run, page = RunFolder(out), quote(str(out)), quote(str(out / "splat.html"))
    write(f"Splat:   {folder.point_cloud(iteration)}")
    write(f"Metrics: {folder.metrics}")
    write(f"Look:    gs-train view {run}")
    write(f"Measure: gs-train eval {run}")
    write(f"Share:   gs-train export {run} {page}")


def _result(state: TrainState, out: Path, finished: bool) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    folder = RunFolder(out)
    return {
        "run": str(out),
        "finished": finished,
        "iteration": state.iteration,
        "gaussians": len(state.model),
        "train_psnr": state.smoothed.get("psnr"),
        "loop_s": state.elapsed_s,
        "peak_memory_bytes": peak_memory(),
        "splat": str(folder.point_cloud(state.iteration)) if finished else None,
        "metrics": str(folder.metrics),
    }


def _summary(state: TrainState, spent_s: float, *, resumed: bool) -> str:
    peak = peak_memory()
    memory = "" if peak is None else f", peak memory {peak / 2**30:.2f} GiB"
    loop = f"{state.elapsed_s:.1f} s in the loop{' over all resumes' if resumed else ''}"
    return f"Trained {state.iteration} iterations: {len(state.model):,} Gaussians, {spent_s:.1f} s ({loop}){memory}."


def _warn_of_decline(state: TrainState) -> None:
    """Tell if the splat at the end is much worse than it was: a late reset, a round that pruned too much, or drift."""
    end, best = (state.smoothed.get(name, 0.0) for name in ("psnr", "best_psnr"))
    if best > end + _DECLINE_DB:
        decline = f"The PSNR of the training photos was {best:.1f} dB at its best and is {end:.1f} dB at the end"
        notify(f"{decline}: train again with --density.opacity-reset-interval 0, or with --preset default.")
