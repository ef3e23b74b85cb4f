"""``gs-train blocks``: scenes too large for one training, in blocks on one machine or several."""

from __future__ import annotations

import math
import re
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import tyro

from gs_train.commands.registry import GivenFlags
from gs_train.config.settings import TrainConfig
from gs_train.config.toml import DEFAULT_PRESET, load_preset
from gs_train.console import notify, print_json, show
from gs_train.errors import UserError
from gs_train.options import DEVICES, MOST_USED, OUTPUT, check_device, setting

if TYPE_CHECKING:
    from gs_train.blocks.train import BlockResult

_MOST_PER_BLOCK = 3_000_000
_City = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CITY")]


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """Divide a large scene into blocks. --iterations and --max-gaussians are those of one training of the whole scene;
    each block takes its share."""

    scene: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCENE")]
    """Scene folder or transforms .json."""
    out: Annotated[Path, tyro.conf.arg(metavar="CITY")] = setting(Path("city"), group=MOST_USED)
    """Folder to write the plan, its drawing plan.svg, and later the blocks to."""
    grid: Annotated[str | None, tyro.conf.arg(metavar="COLUMNSxROWS")] = setting(None, group=MOST_USED)
    """Blocks along the longer side of the scene, and across it; 2x2 for example. If not given, their number follows
    from --max-gaussians and --max-gaussians-per-block."""
    max_gaussians_per_block: int = setting(_MOST_PER_BLOCK, group=MOST_USED)
    """Upper limit of the Gaussians of one block's training, about 3 kB of memory each."""
    preset: str = setting(DEFAULT_PRESET, group=MOST_USED)
    """Settings to start from, as for gs-train train."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    """Settings of the training."""

    @classmethod
    def defaults(cls, given: GivenFlags) -> PlanCommand:
        """The values that flags override: the preset."""
        preset = given.get("--preset") or DEFAULT_PRESET
        return cls(scene=Path(), preset=preset, config=load_preset(preset))

    def __post_init__(self) -> None:
        """Raise UserError, naming the flag, for a value outside its range."""
        if self.max_gaussians_per_block < 1:
            raise UserError(
                f"--max-gaussians-per-block is {self.max_gaussians_per_block}: give a whole number of at least 1."
            )
        if self.grid is not None:
            _grid(self.grid)

    def run(self) -> int:
        """Write the plan."""
        from gs_train.blocks.make_plan import make_plan
        from gs_train.scene.load import load_scene

        scene = load_scene(self.scene, self.config.scene)
        for notice in scene.notices:
            notify(notice)
        plan = make_plan(
            scene,
            self.config,
            self.out,
            grid=None if self.grid is None else _grid(self.grid),
            most_per_block=self.max_gaussians_per_block,
            notify=notify,
        )
        for block in plan.blocks:
            counts = f"{block.photos:,} photos, {block.points:,} points, {block.steps:,} iterations"
            estimate = f"up to {block.expected_gaussians:,} Gaussians, {block.memory_bytes / 2**30:.1f} GiB of memory"
            show(f"Block {block.number}: {counts}, {estimate}")
        if len(plan.blocks) == 1:
            show(f"One block is enough: gs-train train {quote(str(self.scene))} does the same.")
        show(f"Plan:  {plan.picture}")
        show(f"Train: gs-train blocks train {quote(str(self.out))}")
        return 0


@dataclass(frozen=True, kw_only=True)
class TrainBlocksCommand:
    """Train the blocks of a plan. After a stop, the same command goes on."""

    city: _City
    """Folder of the plan."""
    workers: int | None = None
    """Blocks to train side by side on this machine; one per GPU if not given, one without a GPU."""
    scheduler: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS_OR_FILE")] = None
    """Scheduler of a running Dask cluster, tcp://HOST:PORT or its scheduler file. Its machines must see CITY under the
    same path."""
    only: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Train block N only, in this process and without Dask, then finish the blocks that waited for it. Use it in job
    arrays."""

    def __post_init__(self) -> None:
        """Raise UserError for flags that exclude each other."""
        given = [flag for flag in ("workers", "scheduler", "only") if getattr(self, flag) is not None]
        if len(given) > 1:
            raise UserError(f"--{given[0]} does not go with --{given[1]}: leave one of them out.")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers is {self.workers}: give a whole number of at least 1.")

    def run(self) -> int:
        """Train; returns 0 when all blocks have ended, 2 when some failed, or after a signal 128 plus its number."""
        from gs_train.blocks.cluster import check_dask, train_on_cluster
        from gs_train.blocks.make_plan import planned_scene
        from gs_train.blocks.plan import read_plan
        from gs_train.blocks.train import failure_path, train_here, wait_unlocked

        plan = read_plan(self.city)
        numbers = tuple(block.number for block in plan.blocks)
        if self.only is not None:
            if self.only not in numbers:
                raise UserError(f"--only is {self.only}: the plan has the blocks 0 to {numbers[-1]}.")
            numbers = (self.only,)
        planned_scene(plan)  # raises UserError if the scene has changed
        for number in numbers:
            wait_unlocked(plan, plan.blocks[number])
            failure_path(plan, plan.blocks[number]).unlink(missing_ok=True)
        show(f"Watch: gs-train blocks status {quote(str(self.city))}")
        results: list[BlockResult] = []

        def on_end(result: BlockResult) -> None:
            results.append(result)
            state = "trained" if result.outcome == "done" and not result.finish else result.outcome
            reason = f": {result.reason}" if result.reason else ""
            count = sum(each.finish == result.finish for each in results)
            progress = f" ({count} of {len(numbers)})" if self.only is None else ""
            show(f"Block {result.number}: {state}{reason}{progress}")

        try:
            if self.only is not None:
                train_here(plan, self.only, on_end)
            else:
                check_dask()
                gpus = 0 if self.scheduler else _gpu_count()
                train_on_cluster(
                    plan,
                    numbers,
                    workers=self.workers or max(1, gpus),
                    gpus=gpus,
                    scheduler=self.scheduler,
                    flags=_cache_flags(self.workers or max(1, gpus)),
                    on_end=on_end,
                )
        except KeyboardInterrupt:
            return self._stopped_by(signal.SIGINT)
        if any(result.outcome == "stopped" for result in results):
            return self._stopped_by(signal.SIGTERM)
        failed = [result.number for result in results if result.outcome == "failed"]
        if failed:
            raise UserError(
                f"block {', '.join(map(str, failed))} failed ({_reason(results)}): mend that, then run the same "
                "command again."
            )
        if self.only is not None and plan.finished(plan.blocks[self.only]) is None:
            show(f"Block {self.only} is finished together with the last of its neighbours.")
        show(f"Merge: gs-train blocks merge {quote(str(self.city))}")
        return 0

    def _stopped_by(self, number: signal.Signals) -> int:
        """Tell how to go on; returns the exit code."""
        show(f"Stopped. Go on with: gs-train blocks train {quote(str(self.city))}")
        return 128 + number


@dataclass(frozen=True, kw_only=True)
class StatusCommand:
    """Show the state of the blocks of a plan as a table."""

    city: _City
    """Folder of the plan."""
    json: tyro.conf.FlagCreatePairsOff[bool] = setting(False, group=OUTPUT)
    """Print a list of JSON objects in place of the table."""

    def run(self) -> int:
        """Print the table."""
        from gs_train.blocks.plan import read_plan
        from gs_train.blocks.status import status_of, table

        plan = read_plan(self.city)
        statuses = [status_of(plan, block) for block in plan.blocks]
        if self.json:
            print_json([asdict(status) for status in statuses])
            return 0
        for line in table(statuses):
            show(line)
        return 0


@dataclass(frozen=True, kw_only=True)
class MergeCommand:
    """Merge the splats of the blocks into CITY/city.ply, and list them in CITY/city.json."""

    city: _City
    """Folder of the plan."""
    allow_missing: tyro.conf.FlagCreatePairsOff[bool] = False
    """Leave out blocks that have not ended."""

    def run(self) -> int:
        """Merge."""
        from gs_train.blocks.merge import merge
        from gs_train.blocks.plan import read_plan
        from gs_train.progress import Progress

        plan = read_plan(self.city)
        with Progress("merge", len(plan.blocks), unit="block") as progress:
            result = merge(plan, allow_missing=self.allow_missing, notify=notify, after_block=progress.update)
        show(f"Wrote {result.gaussians:,} Gaussians of {len(result.per_block)} blocks.")
        show(f"Splat:   {result.path}")
        show(f"Blocks:  {result.manifest} (a splat of the single files, for every command that reads splats)")
        show(f"Look:    gs-train view {quote(str(result.manifest))}")
        show(f"Measure: gs-train blocks eval {quote(str(self.city))}")
        show(f"Share:   gs-train export {quote(str(result.manifest))} {quote(str(self.city / 'city.sog'))}")
        return 0


@dataclass(frozen=True, kw_only=True)
class EvalBlocksCommand:
    """Measure PSNR and SSIM of the blocks together on the held-out views of the whole scene."""

    city: _City
    """Folder of the plan."""
    allow_missing: tyro.conf.FlagCreatePairsOff[bool] = False
    """Leave out blocks that have not ended."""
    memory_gb: float | None = None
    """Memory for Gaussians on the device, GB; half of the free memory if not given. A view is rendered from its nearest
    blocks that fit."""
    device: Annotated[str, tyro.conf.arg(metavar=DEVICES)] = "auto"
    """Device to render on."""
    json: tyro.conf.FlagCreatePairsOff[bool] = setting(False, group=OUTPUT)
    """Print the result as one JSON object on stdout, and all other text on stderr. Use it in scripts."""

    def __post_init__(self) -> None:
        """Raise UserError, naming the flag, for a value outside its range."""
        check_device(self.device)
        if self.memory_gb is not None and not 0 < self.memory_gb < math.inf:
            raise UserError(f"--memory-gb is {self.memory_gb}: give a number above 0.")

    def run(self) -> int:
        """Write results.json, per_view.json and renders/ into the folder of the plan."""
        from gs_train.blocks.evaluate import evaluate_blocks
        from gs_train.blocks.plan import read_plan
        from gs_train.progress import Progress

        plan = read_plan(self.city)
        with Progress("eval", plan.test_views, unit="view") as progress:
            figures = evaluate_blocks(
                plan,
                memory_gb=self.memory_gb,
                device=self.device,
                allow_missing=self.allow_missing,
                notify=notify,
                after_view=progress.update,
            )
        if self.json:
            print_json(figures)
        write = notify if self.json else show
        write(
            f"{plan.test_views} test views: PSNR {figures['psnr']:.2f} dB, SSIM {figures['ssim']:.4f} (valid region)."
        )
        if figures["views_with_blocks_left_out"]:
            count = figures["views_with_blocks_left_out"]
            write(f"{count} views were rendered without their farthest blocks: raise --memory-gb to render them whole.")
        write(f"Results: {figures['results']}")
        write(f"Per view: {figures['per_view']}")
        return 0


def _grid(text: str) -> tuple[int, int]:
    """Columns and rows of ``--grid``; raises UserError."""
    match = re.fullmatch(r"(\d{1,3})x(\d{1,3})", text)
    if match is None or "0" in match.groups():
        raise UserError(f"--grid is {text}: give columns and rows, such as 3x2.")
    return int(match[1]), int(match[2])


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def _cache_flags(workers: int) -> tuple[str, ...]:
    """The flag that leaves memory for the photos of the other trainings of this machine."""
    from gs_train.machine import free_memory

    return () if workers == 1 else ("--image-cache-gb", f"{free_memory() / 2e9 / workers:.3g}")


def _reason(results: list[BlockResult]) -> str:
    return next(result.reason for result in results if result.outcome == "failed").rstrip(".")
