"""``gs-train``: what each subcommand does. The only place that prints or exits.

The arguments are taken apart in ``flags.py``. Results go to stdout, notes, errors and the progress bar to stderr. torch and Numba are
imported inside the subcommands that need them, so that --help answers at once. The invariant: what a user can put right ends in one
sentence and exit code 2; everything else keeps its traceback.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gs_train import __version__, flags
from gs_train.errors import UserError, first_few

if TYPE_CHECKING:
    from gs_train.run.checkpoint import Checkpoint
    from gs_train.training.state import TrainState

_USER_ERROR = 2
_SIGPIPE = 13
"""Its number on every POSIX system; Windows has no name for it."""
_MANY_REGISTERED = 0.8
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``gs-train`` with ``arguments`` (the process's own if not given) and exit with its code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # As stderr does: a file's name may hold what the terminal's encoding does not.
    try:
        try:
            code = _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            _flush()
    except UserError as error:
        _complain(str(error))
        code = _USER_ERROR
    except BrokenPipeError:
        code = 128 + _SIGPIPE
    except OSError as error:
        if error.errno in _DISK_FULL:
            _complain(f"{_full(error)} and run the command again; earlier files are intact.")
        elif error.filename is not None:
            message = error.strerror or error
            _complain(
                f"{os.fsdecode(error.filename)} cannot be read or written ({message}): mend that and run the command again."
            )
        else:
            raise
        code = _USER_ERROR
    except MemoryError as error:
        _complain(f"{error if str(error) else 'there is not enough memory'}: use smaller images or fewer Gaussians.")
        code = _USER_ERROR
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    if arguments == ["--version"]:
        print(f"gs-train {__version__}")
        return 0
    command = flags.parse(arguments)
    return _RUN[type(command)](command)


def run_train(command: flags.TrainCommand) -> int:
    """``gs-train train``: returns 0, or 128 and the signal's number when it was stopped."""
    from gs_train.run.folder import RunFolder

    began_s = time.perf_counter()
    if command.scene is None:
        if command.resume is not None:
            message = f"{command.resume / 'config.toml'} does not say which scene the run was trained on"
            raise UserError(f"{message}: name it with gs-train train SCENE --resume {command.resume}.")
        raise UserError(
            "train needs a SCENE: name its folder, or a run with --resume; gs-train sample DIR writes a scene to try."
        )
    out = command.resume or command.out or Path("runs") / _scene_name(command.scene.resolve())
    folder = RunFolder(out)
    if command.resume is None:
        folder.check_free(overwrite=command.overwrite)
    elif not command.scene.exists():
        raise UserError(
            f"{command.scene} does not exist: name where the scene is now with gs-train train SCENE --resume {out}."
        )
    scene = _load_scene(command.scene, command.config)

    from gs_train.run.checkpoint import list_checkpoints
    from gs_train.training.loop import train

    steps: list[int] = []
    with _stop_signals() as caught:
        try:
            state = train(
                scene,
                command.config,
                out,
                resume=command.resume is not None,
                overwrite=command.overwrite,
                after_step=[lambda state: steps.append(state.iteration)],
                should_stop=lambda: bool(caught),
                notify=_note,
            )
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            remedy = f"go on with gs-train train --resume {out}; earlier files are intact"
            if not list_checkpoints(folder.checkpoints):
                remedy = "give the same command again with --overwrite (there is no checkpoint yet to go on from)"
            raise UserError(f"{_full(error, out)} and {remedy}.") from error
        except FloatingPointError as error:
            raise UserError(
                f"training has diverged ({error}): give lower rates by the --optimizer flags, with --overwrite."
            ) from error
    if state.iteration < command.config.iterations:
        print(
            f"Stopped after iteration {state.iteration} of {command.config.iterations}. Go on with: gs-train train --resume {out}"
        )
        return 128 + caught[0]
    if steps:
        _print_summary(state, time.perf_counter() - began_s, resumed=command.resume is not None)
    else:
        print(f"Already at iteration {state.iteration}: give a larger --iterations to go on.")
    print(f"Splat:   {folder.point_cloud(state.iteration)}")
    print(f"Metrics: {folder.metrics}")
    print(f"Next:    gs-train eval {folder.path}")
    return 0


def _scene_name(scene: Path) -> str:
    """The folder's name, also where a file in it was named."""
    return scene.parent.name if scene.is_file() else scene.name


def _print_summary(state: TrainState, spent_s: float, *, resumed: bool) -> None:
    peak = _peak_memory_gib()
    memory = "" if peak is None else f", peak memory {peak:.2f} GiB"
    seconds = f"{spent_s:.1f} s ({state.elapsed_s:.1f} s in the loop{' over all resumes' if resumed else ''})"
    print(f"Trained {state.iteration} iterations: {len(state.model):,} Gaussians, {seconds}{memory}.")


def run_eval(command: flags.EvalCommand) -> int:
    """``gs-train eval``."""
    from tqdm import tqdm

    from gs_train.config.toml import read_config
    from gs_train.evaluate.evaluate import evaluate, write_figures
    from gs_train.model.gaussians import GaussianModel
    from gs_train.render.select import select_rasterizer
    from gs_train.run.checkpoint import check_scene, newest_intact
    from gs_train.run.folder import RunFolder

    folder = RunFolder(command.run)
    folder.check_run()
    config, scene_path = read_config(folder.config)
    scene_path = command.scene or scene_path
    if scene_path is None:
        raise UserError(f"{folder.config} does not say which scene the run was trained on: name it with --scene.")
    if not scene_path.exists():
        raise UserError(f"{scene_path} does not exist: name where the scene of {command.run} is now with --scene DIR.")
    scene = _load_scene(scene_path, config)
    checkpoint = newest_intact(folder.checkpoints, _note)
    check_scene(checkpoint, scene)
    selection = select_rasterizer(command.device or config.device, _note, antialiased=config.antialiased)
    _note(f"Device {selection.reason}.")
    views, split = (scene.test_views, "test") if scene.test_views else (scene.train_views, "train")
    if split == "train":
        _note("There are no test views: evaluating on the training views, which says little about new ones.")
        if config.refine_poses or config.exposure != "none":
            _note(
                "They are rendered from the scene's own poses and as the splat is exposed, not as they were corrected in training."
            )
    model = GaussianModel.from_state_dict(checkpoint.state["model"], selection.device)
    with tqdm(total=len(views), desc="eval", unit="view") as bar:
        evaluation = evaluate(
            model,
            views,
            selection.rasterizer,
            background=checkpoint.state["background"]["eval_color"].to(selection.device),
            renders=folder.path / "renders" / f"iteration_{checkpoint.iteration}",
            after_view=bar.update,
        )
    name, gaussians = selection.rasterizer.name, len(model)
    results, per_view = write_figures(
        evaluation, folder.path, iteration=checkpoint.iteration, split=split, gaussians=gaussians, rasterizer=name
    )
    mean = evaluation.mean
    figures = f"PSNR {mean.psnr:.2f} dB ({mean.psnr_colour_matched:.2f} dB with colours matched), SSIM {mean.ssim:.4f} (valid region)"
    print(f"Iteration {checkpoint.iteration}, {len(views)} {split} view{'' if len(views) == 1 else 's'}: {figures}.")
    print(f"Results: {results}\nPer view: {per_view}\nPhoto beside render: {evaluation.images[0]}")
    print(f"Next: gs-train export {command.run} splat.ply")
    return 0


def run_export(command: flags.ExportCommand) -> int:
    """``gs-train export``."""
    from gs_train.commands.info import intact_checkpoint
    from gs_train.formats.ply import read_ply, write_ply
    from gs_train.run.folder import RunFolder

    source, target = command.source, command.target
    if target.suffix != ".ply" or target.name.endswith(".compressed.ply"):
        raise UserError(f"{target} has an ending that export does not write: name a file that ends in .ply.")
    if source.is_dir():
        from gs_train.run.checkpoint import newest_intact

        RunFolder(source).check_run()
        data = _splat_of(newest_intact(RunFolder(source).checkpoints, _note))
    elif source.suffix == ".pt":
        data = _splat_of(intact_checkpoint(source))
    else:
        data = read_ply(source)
    write_ply(target, data)
    print(f"Wrote {len(data):,} Gaussians to {target} ({target.stat().st_size / 2**20:.1f} MiB).")
    return 0


def run_prepare(command: flags.PrepareCommand) -> int:
    """``gs-train prepare``."""
    from gs_train.prepare.pipeline import prepare_scene

    try:
        with _step_bars() as show:
            prepared = prepare_scene(command.source, command.scene, frames=command.frames, progress=show, notify=_note)
    except KeyboardInterrupt:
        _note("Stopped. The same command goes on from here.")
        raise
    found = f"Registered {prepared.registered} of {prepared.photos} photos"
    quality = f"mean reprojection error {prepared.reprojection_error_px:.2f} px, mean track length {prepared.track_length:.1f}"
    print(f"{found}: {prepared.points:,} points, {quality}.")
    if prepared.unregistered:
        print(f"Not registered: {first_few(prepared.unregistered)}")
    if prepared.registered < _MANY_REGISTERED * prepared.photos:
        parts = (
            ""
            if prepared.models == 1
            else f" (they fall into {prepared.models} parts that do not hang together, and this is the largest)"
        )
        message = f"Few photos were registered{parts}: take more between those that were and the others, so that neighbours share most of what"
        _note(f"{message} they show; blurred photos, bare walls, mirrors and things that move do not help.")
    print(f"Scene: {command.scene}\nNext:  gs-train train {command.scene}")
    return 0


def run_sample(command: flags.SampleCommand) -> int:
    """``gs-train sample``."""
    from gs_train.sample.scene import write_sample_scene

    write_sample_scene(
        command.folder,
        seed=command.seed,
        views=command.views,
        width=command.width,
        height=command.height,
        points=command.points,
    )
    print(
        f"Wrote {command.views} photos, cameras and points to {command.folder}.\nNext: gs-train train {command.folder}"
    )
    return 0


def run_info(command: flags.InfoCommand) -> int:
    """``gs-train info``: returns 2 for a scene with faults, which are all told."""
    from gs_train.commands.info import FAULT, describe

    facts = describe(command.path, _note)
    _print_facts(facts)
    return _USER_ERROR if any(name == FAULT for name, _ in facts) else 0


def run_doctor(_command: flags.DoctorCommand) -> int:
    """``gs-train doctor``: returns 1 when something is wrong."""
    from gs_train.commands.doctor import examine

    findings = list(examine())
    _print_facts([(finding.name, finding.message) for finding in findings])
    remedies = [finding.remedy for finding in findings if finding.remedy is not None]
    # The first one, because what follows often fails only because of it.
    print(
        f"To mend it: {remedies[0]}"
        if remedies
        else "All is well: try gs-train sample scene, then gs-train train scene."
    )
    return 1 if remedies else 0


_RUN: dict[type[Any], Callable[[Any], int]] = {
    flags.TrainCommand: run_train,
    flags.EvalCommand: run_eval,
    flags.ExportCommand: run_export,
    flags.PrepareCommand: run_prepare,
    flags.SampleCommand: run_sample,
    flags.InfoCommand: run_info,
    flags.DoctorCommand: run_doctor,
}


def _load_scene(path: Path, config: flags.TrainConfig) -> Any:
    """The scene, with what it has to say said."""
    from gs_train.scene.load import load_scene

    scene = load_scene(path, config.scene)
    for notice in scene.notices:
        _note(notice)
    return scene


def _splat_of(checkpoint: Checkpoint) -> Any:
    from gs_train.model.gaussians import GaussianModel

    model = GaussianModel.from_state_dict(checkpoint.state["model"])
    return model.to_splat_data(antialiased=checkpoint.config["antialiased"])


@contextmanager
def _step_bars() -> Iterator[Callable[[str, int, int], None]]:
    """One progress bar a step, the one before it closed: called with the step's name, how far it is, and where it ends."""
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def show(step: str, done: int, total: int) -> None:
        if step not in bars:
            for bar in bars.values():
                bar.close()
            bars[step] = tqdm(total=total, desc=step)
        bars[step].update(done - bars[step].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one ends at once."""
    caught: list[int] = []

    def note(number: int, _frame: Any) -> None:
        caught.append(number)
        for each in previous:
            signal.signal(each, signal.SIG_DFL)
        # Written past Python's buffers, which may be in the middle of a write of the progress bar.
        os.write(2, b"\nFinishing this step, then saving. Again to end at once.\n")

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _peak_memory_gib() -> float | None:
    """Largest resident size of this process so far; None where the system does not say."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def _full(error: OSError, folder: Path | None = None) -> str:
    """What no longer fits, and the first half of the remedy; ``folder`` serves where the error names no file."""
    place = folder if error.filename is None else error.filename
    if error.errno == errno.EFBIG:
        what = "A file" if place is None else f"A file in {place}" if error.filename is None else place
        return f"{what} cannot grow ({error.strerror}): lift the limit on the size of files (ulimit -f)"
    return f"The disk is full{'' if place is None else f' at {place}'} ({error.strerror}): free space"


def _flush() -> None:
    """Flush stdout here and not when Python ends, where a fault can no longer be told; what cannot be written is then dropped."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _print_facts(facts: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {value}")


def _note(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _complain(sentence: str) -> None:
    print(f"gs-train: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
