"""The order of positions along a Morton curve."""

from __future__ import annotations

import torch

from gs_train.model.morton import morton_codes


def morton_order(xyz: torch.Tensor) -> torch.Tensor:
    return morton_codes(xyz).argsort(stable=True)


def test_the_order_brings_neighbours_together() -> None:
    xyz = torch.rand(5000, 3, generator=torch.Generator().manual_seed(0))
    ordered = xyz[morton_order(xyz)]
    steps, shuffled_steps = (rows.diff(dim=0).norm(dim=1).mean().item() for rows in (ordered, xyz))
    assert steps < 0.25 * shuffled_steps


def test_any_positions_have_places() -> None:
    for xyz in (
        torch.zeros(0, 3),
        torch.ones(1, 3),
        torch.ones(7, 3),
        torch.tensor([[0.0, 1e30, -1e30], [float("nan"), 0.0, 1.0], [1.0, 1.0, 1.0]]),
    ):
        codes = morton_codes(xyz)
        assert codes.shape == (len(xyz),) and codes.dtype == torch.int64
        assert all(0 <= code < 2**30 for code in codes.tolist())


def test_eight_corners_are_visited_x_fastest() -> None:
    corners = torch.tensor([[x, y, z] for z in (0.0, 1.0) for y in (0.0, 1.0) for x in (0.0, 1.0)])
    shuffle = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    assert torch.equal(corners[shuffle][morton_order(corners[shuffle])], corners)


def test_far_points_do_not_coarsen_the_rest() -> None:
    xyz = torch.rand(2000, 3, generator=torch.Generator().manual_seed(0))
    with_far = torch.cat([xyz, torch.tensor([[1e6, 1e6, 1e6]])])
    near = with_far[morton_order(with_far)]
    assert near[:-1].diff(dim=0).norm(dim=1).mean().item() < 0.2
