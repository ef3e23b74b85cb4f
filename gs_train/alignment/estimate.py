"""The step of a robust least-squares fit: Gauss-Newton with iteratively reweighted residuals.

A residual r has the weight 1 / sqrt(r^2 + s^2), so the sum of absolute residuals is minimised, smoothed near 0. Unlike
the step of Adam, the step is as long as the error is large: parameters that fit already stay in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

SOFTNESS = 0.02
"""s, of colours from 0 to 1."""
_EXPOSURE_ROUNDS = 3
_DAMPING = 1e-3
"""Added to the diagonal of the normal equations, relative to it (Levenberg-Marquardt)."""


def without_exposure(values: Tensor, reference: Tensor, weights: Tensor | None = None, *, softness: float) -> Tensor:
    """Residuals of colours after the gain and the offset of each channel that fit best, robustly.

    Args:
        values, reference: [K, 3].
        weights: [K, 1] weight of each row; None for 1.
        softness: as in ``robust_step``.

    Returns:
        [K, 3] ``values`` less the fit of ``reference``.
    """
    residual = values - reference
    for _ in range(_EXPOSURE_ROUNDS):
        robust = torch.rsqrt(residual.square() + softness**2)
        robust = robust if weights is None else robust * weights
        robust = robust / robust.sum(dim=0).clamp(min=1e-9)
        about, mean = reference - (robust * reference).sum(dim=0), (robust * values).sum(dim=0)
        gain = (robust * about * values).sum(dim=0) / (robust * about.square()).sum(dim=0).clamp(min=1e-9)
        residual = values - mean - gain * about
    return residual


def robust_step(
    jacobian: Tensor, residual: Tensor, weights: Tensor | None = None, softness: float = SOFTNESS
) -> Tensor:
    """[P] float64 change of P parameters that reduces the residuals.

    Args:
        jacobian: [P, R] derivative of the residuals by the parameters.
        residual: [R].
        weights: [R] weight of each residual besides the robust one; None for 1.
        softness: of residuals of about this size or less, the squares count instead of the absolute values.
    """
    step, _ = robust_step_by_groups(
        jacobian[None], residual[None], None if weights is None else weights[None], softness=softness
    )
    return step


def robust_step_by_groups(
    jacobian: Tensor, residual: Tensor, weights: Tensor | None = None, softness: float = SOFTNESS
) -> tuple[Tensor, Tensor]:
    """The step, and how uncertain it is, from residuals in G groups.

    Neighbouring pixels err together, so their number says nothing about the error of the step. Groups that are large
    enough err independently: the covariance follows from the differences between their own gradients after the step
    (the sandwich estimator for clustered errors; White 1980, Liang and Zeger 1986).

    Args:
        jacobian: [G, P, R] as in ``robust_step``.
        residual: [G, R].
        weights: [G, R] or None.
        softness: as in ``robust_step``.

    Returns:
        [P] float64 step, and [P, P] float64 covariance of its error.
    """
    robust = torch.rsqrt(residual.square() + softness**2)
    weighted = jacobian * (robust if weights is None else robust * weights)[:, None]
    normals = (weighted @ jacobian.mT).double()
    gradients = (weighted @ residual[..., None])[..., 0].double()
    normal = normals.sum(dim=0)
    diagonal = normal.diagonal()
    # Without any information the step is 0, not an error.
    damped = normal + torch.diag(_DAMPING * diagonal + 1e-9 * diagonal.max() + 1e-12)
    # The variants without a check of their own, which would make a GPU wait.
    step = -torch.linalg.solve_ex(damped, gradients.sum(dim=0)).result
    left = gradients + normals @ step
    inverse = torch.linalg.inv_ex(damped).inverse
    return step, inverse @ (left.T @ left) @ inverse
