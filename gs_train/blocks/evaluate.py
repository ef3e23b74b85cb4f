"""Measures a city on the held-out views of the whole scene, from the splats of its blocks.

Every view is rendered from the blocks that it shows. If all blocks fit into the memory budget, they are loaded once.
``gs-train eval`` measures the same figures of one run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from gs_train.blocks.choose import BlockBounds, blocks_for, bounds_of, grouped
from gs_train.blocks.make_plan import planned_scene
from gs_train.blocks.merge import city_of
from gs_train.blocks.plan import Plan
from gs_train.errors import UserError
from gs_train.evaluate.evaluate import Evaluation, evaluate, write_figures
from gs_train.evaluate.perceptual import NAMES, perceptual_for
from gs_train.evaluate.pictures import png_names
from gs_train.formats.city import City
from gs_train.formats.splat_data import SplatData
from gs_train.model.gaussians import PARAMETER_NAMES, GaussianModel
from gs_train.render.select import free_device_memory, select_rasterizer
from gs_train.run.splat_frame import moved
from gs_train.scene.frame import Frame, training_frame
from gs_train.scene.types import View

BYTES_PER_GAUSSIAN = 500
"""Memory to load and render a Gaussian of SH degree 3: twice its 236 bytes while it is loaded. The buffers of a render
take less afterwards."""
_MEMORY_SHARE = 0.5
"""Of the device's free memory, without a budget."""


def evaluate_blocks(
    plan: Plan,
    *,
    memory_gb: float | None = None,
    device: str = "auto",
    allow_missing: bool = False,
    notify: Callable[[str], None],
    after_view: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write ``results.json``, ``per_view.json`` and ``renders/`` of a city.

    Args:
        plan: of the city.
        memory_gb: budget for Gaussians on the device, GB, above 0; None for half of the device's free memory.
        device: as ``--device``.
        allow_missing: leave out blocks without a splat.
        notify: takes sentences about the device, missing blocks and metrics.
        after_view: called after each of ``plan.test_views`` views.

    Returns:
        The content of results.json, where ``iteration`` is the sum over the blocks, with ``results``, ``per_view`` and
        ``images`` (their paths), ``blocks`` (their number), ``loads`` (sets of blocks loaded one after the other) and
        ``views_with_blocks_left_out``.

    Raises:
        UserError: the scene has changed or has no held-out views, a block has no splat, a splat is damaged, or the
            nearest block of a view does not fit into the budget.
        OSError: a file cannot be written.
    """
    config, scene = planned_scene(plan)
    if not scene.test_views:
        raise UserError(
            f"{plan.scene} has no held-out views with the settings of {plan.path}: plan it again in a "
            "new folder with --test-every 8 to measure it."
        )
    city = city_of(plan, allow_missing=allow_missing, notify=notify)
    frame = training_frame(replace(scene, extent=plan.part(plan.blocks[0]).extent))
    views = frame.apply(scene).test_views
    selection = select_rasterizer(device, notify, antialiased=city.stream().antialiased)
    notify(f"Device {selection.reason}.")
    free = _MEMORY_SHARE * free_device_memory(selection.device)
    most = int((free if memory_gb is None else memory_gb * 1e9) / BYTES_PER_GAUSSIAN)
    work = _shared_out(views, _bounds(city, frame), most, notify)
    measure = partial(
        evaluate,
        rasterizer=selection.rasterizer,
        background=torch.full((3,), 1.0 if config.background == "white" else 0.0, device=selection.device),
        perceptual=perceptual_for(views, NAMES, selection.device, notify),
        renders=plan.path / "renders",
        after_view=after_view,
    )
    whole = _measured(views, work, lambda blocks: _model(city, blocks, frame, selection.device), measure)
    return _written(plan, city, work, replace(whole, gaussians=sum(block.gaussians for block in city.blocks)))


@dataclass(frozen=True, kw_only=True)
class _Work:
    groups: list[tuple[tuple[int, ...], list[int]]]
    """Numbers of the blocks to load, and indices of the views to render from them."""
    incomplete: int
    """Number of views of which some blocks do not fit."""


def _bounds(city: City, frame: Frame) -> dict[int, BlockBounds]:
    """Number of a block -> bounds in the coordinates of ``frame``; blocks without Gaussians are left out."""
    found = {}
    for block in city.blocks:

        def checked(piece: SplatData, file: str = block.file) -> SplatData:
            if not piece.is_finite().all():
                raise UserError(
                    f"{city.folder / file} is damaged (it has NaN or infinite values): copy it again, or train the "
                    "block again."
                )
            return moved(piece, Frame(offset=city.offset), frame)

        bounds = bounds_of(map(checked, city.block_pieces(block)))
        if bounds is not None:
            found[block.number] = bounds
    if not found:
        raise UserError(f"no block of {city.folder} has Gaussians in its box: train the blocks again.")
    return found


def _measured(
    views: Sequence[View],
    work: _Work,
    load: Callable[[Sequence[int]], GaussianModel],
    measure: Callable[..., Evaluation],
) -> Evaluation:
    """The evaluation of all views, in their order; each set of blocks is loaded once."""
    names = png_names([view.name for view in views])
    done = [
        measure(load(blocks), [views[index] for index in members], names=[names[index] for index in members])
        for blocks, members in work.groups
    ]
    per_view = {name: metrics for part in done for name, metrics in part.per_view.items()}
    folder = done[0].images[0].parent
    return replace(
        done[0],
        per_view={view.name: per_view[view.name] for view in views},
        images=tuple(folder / name for name in names),
    )


def _written(plan: Plan, city: City, work: _Work, whole: Evaluation) -> dict[str, Any]:
    """Write the figures; returns them with the facts of the evaluation."""
    planned = [plan.blocks[block.number] for block in city.blocks]
    steps = sum(block.steps if plan.finished(block) else block.iterations for block in planned)
    results, each = write_figures(whole, plan.path, iteration=steps, split="test")
    figures: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
    return figures | {
        "results": str(results),
        "per_view": str(each),
        "images": [str(path) for path in whole.images],
        "blocks": len(city.blocks),
        "loads": len(work.groups),
        "views_with_blocks_left_out": work.incomplete,
    }


def _shared_out(
    views: Sequence[View], bounds: dict[int, BlockBounds], most: int, notify: Callable[[str], None]
) -> _Work:
    total = sum(each.gaussians for each in bounds.values())
    if total <= most:
        return _Work(groups=[(tuple(bounds), list(range(len(views))))], incomplete=0)
    needs = [blocks_for(view, bounds, most) for view in views]
    groups = grouped([fitting for fitting, _ in needs], bounds, most)
    incomplete = sum(not set(needs[index][1]) <= set(blocks) for blocks, members in groups for index in members)
    gigabytes = total * BYTES_PER_GAUSSIAN / 1e9
    notify(f"The blocks are loaded in {len(groups)} sets, because all of them need --memory-gb {gigabytes:.3g}.")
    if incomplete:
        notify(f"{incomplete} of {len(views)} views are rendered without the farthest blocks that they show.")
    return _Work(groups=groups, incomplete=incomplete)


def _model(city: City, blocks: Sequence[int], frame: Frame, device: torch.device) -> GaussianModel:
    """The Gaussians of some blocks, in the coordinates of ``frame``."""
    chosen = replace(city, blocks=tuple(block for block in city.blocks if block.number in blocks))
    data = chosen.stream().mapped(lambda piece: moved(piece, Frame(offset=city.offset), frame)).collect()
    parameters = {name: torch.from_numpy(getattr(data, name)) for name in PARAMETER_NAMES}
    state = {"parameters": parameters, "spatial_lr_scale": 1.0, "active_sh_degree": data.sh_degree}
    return GaussianModel.from_state_dict(state, device)
