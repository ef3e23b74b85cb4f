"""Late in a training, Gaussians share sets of SH coefficients and go on to learn them together.

Formats such as ``.sog`` hold a palette of these sets. A palette made after training loses colours that depend on the
view; a palette made during training loses less, because all parameters adapt to it.
"""

from __future__ import annotations

import torch

from gs_train.config.settings import TrainConfig
from gs_train.formats.palette import distinct_rows, importance_of, make_palette
from gs_train.model.gaussians import GaussianModel
from gs_train.model.row_sets import RowSets

SHARED_FROM = 0.8
"""Fraction of a training from which Gaussians share their sets. An earlier start gains nothing; a later start leaves
too few steps to adapt."""


def share_sh(model: GaussianModel, iteration: int, config: TrainConfig) -> None:
    """Keep the number of different ``f_rest`` at ``config.sh_palette`` in the last part of a training.

    The sets are those of equal rows if there are few enough, so a resumed training finds its sets again, and copies of
    Gaussians stay in the set of their parent. Otherwise k-means makes them. Degree 0 has no coefficients to share.
    """
    late = iteration > SHARED_FROM * config.iterations
    if not config.sh_palette or not late or model.max_sh_degree == 0 or model.f_rest_sets is not None:
        return
    rows = model.f_rest.detach().flatten(1).cpu().numpy()
    centres, labels = distinct_rows(rows)
    values = None
    if len(centres) > config.sh_palette:
        of_each = (each.detach().cpu().numpy() for each in (model.xyz, model.scaling, model.opacity))
        centres, labels = make_palette(rows, config.sh_palette, importance_of(*of_each))
        # A centre may have no rows, or be equal to another one.
        centres, labels = distinct_rows(centres[labels])
        values = torch.from_numpy(centres).view(-1, *model.f_rest.shape[1:])
    model.share_f_rest(RowSets.of_labels(torch.from_numpy(labels).to(model.device)), values)
