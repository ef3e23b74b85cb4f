"""The model: N Gaussians as six raw tensors, their activations, and the Adam optimizer that trains them.

Rasterizers read the model. Density control adds, removes and replaces rows through the methods whose names end in
``_optimizer``. The six tensors always have the same number of rows, and the optimizer has six groups of the same names
that hold exactly these tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from gs_train.formats.splat_data import SplatData
from gs_train.model import optimizer as door
from gs_train.model.rates import BETAS, EPS, AdamSchedule
from gs_train.model.row_sets import RowSets
from gs_train.model.schedule import OptimizerConfig
from gs_train.model.spherical_harmonics import degree_of_rest

PARAMETER_NAMES = ("xyz", "f_dc", "f_rest", "opacity", "scaling", "rotation")
"""Names of the six tensors, in the order of the Adam groups."""


class GaussianModel:
    """N Gaussians with raw (unactivated) parameters.

    Shapes: xyz [N, 3] world units; f_dc [N, 1, 3]; f_rest [N, (d + 1)^2 - 1, 3] for the spherical-harmonics degree d;
    opacity [N, 1] logit; scaling [N, 3] log; rotation [N, 4] wxyz, unnormalised.
    """

    optimizer: torch.optim.Adam | None
    """Adam over the six tensors; None before ``training_setup``."""
    active_sh_degree: int
    """Spherical-harmonics degree that rasterizers use, 0 to ``max_sh_degree``."""
    spatial_lr_scale: float
    """Factor on the learning rate of the positions: the scene's extent, world units."""
    f_rest_sets: RowSets | None
    """Gaussians that share one ``f_rest``; None if each has its own, or if rows changed since ``share_f_rest``."""

    def __init__(
        self, tensors: Mapping[str, Tensor], *, spatial_lr_scale: float = 1.0, active_sh_degree: int = 0
    ) -> None:
        """Copy the six raw tensors.

        Args:
            tensors: the six tensors by name, with the same floating dtype (float32 in training) and on the same device.
            spatial_lr_scale: see the attribute.
            active_sh_degree: see the attribute.

        Raises:
            ValueError: a name is missing or unknown, a tensor has the wrong shape, dtype or device, or the degree is
                out of range.
        """
        _check_tensors(tensors)
        self._parameters = {
            name: Parameter(tensors[name].detach().clone(memory_format=torch.contiguous_format))
            for name in PARAMETER_NAMES
        }
        self.optimizer = None
        self.spatial_lr_scale = float(spatial_lr_scale)
        self.active_sh_degree = active_sh_degree
        _check_degree(active_sh_degree, self.max_sh_degree)
        self._config: OptimizerConfig | None = None
        self._schedule: AdamSchedule | None = None
        self.f_rest_sets = None

    # ---- contents ----

    def __len__(self) -> int:
        """The number of Gaussians, N."""
        return len(self._parameters["xyz"])

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The six current parameters by name, in a new dict."""
        return dict(self._parameters)

    @property
    def xyz(self) -> Parameter:
        """[N, 3] positions, world units."""
        return self._parameters["xyz"]

    @property
    def f_dc(self) -> Parameter:
        """[N, 1, 3] spherical-harmonics coefficients of degree 0."""
        return self._parameters["f_dc"]

    @property
    def f_rest(self) -> Parameter:
        """[N, (d + 1)^2 - 1, 3] spherical-harmonics coefficients of degrees 1 to d."""
        return self._parameters["f_rest"]

    @property
    def opacity(self) -> Parameter:
        """[N, 1] logit of the opacity."""
        return self._parameters["opacity"]

    @property
    def scaling(self) -> Parameter:
        """[N, 3] logarithm of the scales."""
        return self._parameters["scaling"]

    @property
    def rotation(self) -> Parameter:
        """[N, 4] quaternions wxyz, unnormalised: the rotation from each Gaussian's axes to the world."""
        return self._parameters["rotation"]

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.xyz.device

    @property
    def max_sh_degree(self) -> int:
        """Spherical-harmonics degree d that ``f_rest`` holds the coefficients of."""
        return degree_of_rest(self.f_rest.shape[1])

    def scales(self) -> Tensor:
        """[N, 3] standard deviations along the axes of each Gaussian, world units."""
        return self.scaling.exp()

    def opacities(self) -> Tensor:
        """[N] opacities, 0 to 1."""
        return self.opacity.sigmoid().squeeze(-1)

    def quaternions(self) -> Tensor:
        """[N, 4] unit quaternions wxyz."""
        return torch.nn.functional.normalize(self.rotation, dim=-1)

    # ---- training ----

    def training_setup(self, config: OptimizerConfig) -> None:
        """Build a new Adam with six named groups of one tensor each.

        Epsilon is the original trainer's; its learning rates are in the presets ``paper`` and ``classic``.

        Raises:
            ValueError: ``config.xyz_lr_max_steps`` is still a fraction of the iterations.
        """
        schedule = AdamSchedule(config, self.spatial_lr_scale)
        rates = schedule.rates
        groups = [{"params": [self._parameters[name]], "lr": rates[name], "name": name} for name in PARAMETER_NAMES]
        # The fused step makes one pass over memory per tensor. On a CPU it is several times faster than the default.
        self.optimizer = torch.optim.Adam(groups, lr=0.0, betas=BETAS, eps=EPS, fused=True)
        door.start_moments(self.optimizer)
        self._config, self._schedule = config, schedule

    def update_learning_rate(self, iteration: int, batch_size: int = 1) -> float:
        """Set the learning rates of all groups for this iteration, and return the rate of ``xyz``. With ``batch_rule``
        they also depend on the number of views in the step.

        Raises:
            ValueError: ``training_setup`` has not been called.
        """
        if self.optimizer is None or self._schedule is None:
            raise ValueError("update_learning_rate needs training_setup to be called first")
        return self._schedule.apply(self.optimizer, iteration, batch_size)

    def step(self) -> None:
        """Take one Adam step and free the gradients.

        Raises:
            ValueError: ``training_setup`` has not been called.
        """
        if self.optimizer is None:
            raise ValueError("step needs training_setup to be called first")
        door.step(self.optimizer, {} if self.f_rest_sets is None else {"f_rest": self.f_rest_sets})

    def share_f_rest(self, sets: RowSets, values: Tensor | None = None) -> None:
        """Let the Gaussians of each of K sets learn one ``f_rest`` together, until rows change.

        ``values`` are [K, (d + 1)^2 - 1, 3] new coefficients; None if those of each set are equal already.
        """
        if values is not None:
            door.merge_rows(self._parameters, self.optimizer, "f_rest", sets, values)
        self.f_rest_sets = sets

    def cat_tensors_to_optimizer(self, tensors_dict: Mapping[str, Tensor]) -> dict[str, Parameter]:
        """Append rows with zero moments to all six tensors. Works with and without an optimizer.

        Args:
            tensors_dict: M >= 0 new rows for each of the six names.

        Returns:
            The current parameters, N + M rows each.

        Raises:
            ValueError: ``tensors_dict`` does not have exactly the six names, or a tensor has the wrong shape, dtype or
                device. The model stays unchanged.
        """
        self._parameters = door.append_rows(self._parameters, self.optimizer, tensors_dict)
        self.f_rest_sets = None
        return self.parameters

    def prune_optimizer(self, keep_mask: Tensor, count: int | None = None) -> dict[str, Parameter]:
        """Keep the rows where ``keep_mask`` ([N] bool) is true. Works with and without an optimizer.

        Args:
            keep_mask: the rows to keep.
            count: their number; without it, the program waits for a GPU to count them.

        Returns:
            The current parameters.

        Raises:
            ValueError: the mask is not [N] bool. The model stays unchanged.
        """
        self._parameters = door.keep_rows(self._parameters, self.optimizer, keep_mask, count)
        self.f_rest_sets = None
        return self.parameters

    def replace_tensor_to_optimizer(self, tensor: Tensor, name: str) -> dict[str, Parameter]:
        """Replace the tensor ``name`` and zero its moments. Works with and without an optimizer.

        Returns:
            The current parameters.

        Raises:
            ValueError: the name is unknown, or the tensor has the wrong shape, dtype or device. The model stays
                unchanged.
        """
        self._parameters = door.replace(self._parameters, self.optimizer, name, tensor)
        self.f_rest_sets = None
        return self.parameters

    def sort_optimizer(self, keys: Tensor) -> dict[str, Parameter]:
        """Sort the rows. Works with and without an optimizer.

        Args:
            keys: [N] int64. Row i of the result is the row with the i-th smallest key; rows of equal keys keep their
                order.

        Returns:
            The current parameters.

        Raises:
            ValueError: the keys are not [N] int64. The model stays unchanged.
        """
        self._parameters = door.sort_rows(self._parameters, self.optimizer, keys)
        self.f_rest_sets = None
        return self.parameters

    def oneup_sh_degree(self) -> None:
        """Raise the active spherical-harmonics degree by one, up to ``max_sh_degree``."""
        self.active_sh_degree = min(self.active_sh_degree + 1, self.max_sh_degree)

    def reset_opacity(self, to: float = 0.01) -> None:
        """Lower every opacity to at most ``to`` (original: 0.01) and zero the opacity moments.

        Raises:
            ValueError: ``to`` is not between 0 and 1.
        """
        if not 0.0 < to < 1.0:
            raise ValueError(f"reset_opacity: expected a value between 0 and 1, got {to}")
        # The sigmoid is monotonic, so clamping the logits clamps the opacities. Logits below the limit keep their bits.
        self.replace_tensor_to_optimizer(self.opacity.detach().clamp(max=math.log(to / (1.0 - to))), "opacity")

    # ---- saving and loading ----

    def state_dict(self) -> dict[str, Any]:
        """All values that change during training, as tensors and numbers, loadable with ``weights_only=True``.

        The tensors are the model's own, not copies.
        """
        return {
            "parameters": {name: parameter.detach() for name, parameter in self._parameters.items()},
            "active_sh_degree": self.active_sh_degree,
            "spatial_lr_scale": self.spatial_lr_scale,
            "optimizer": None if self.optimizer is None else door.dump_state(self.optimizer),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore copies of a saved state on this model's device. The number of rows may change.

        A model with an optimizer also restores moments, step counts and learning rates, so call ``training_setup``
        first. If the state was saved without an optimizer, the model keeps its learning rates and starts with zero
        moments. A model without an optimizer ignores the saved optimizer state.

        Raises:
            ValueError: a name is missing or unknown, a tensor has the wrong shape or dtype, or the degree is out of
                range. The model stays unchanged.
        """
        tensors = {name: tensor.to(self.device) for name, tensor in state["parameters"].items()}
        _check_tensors(tensors)
        tensors = {name: tensors[name] for name in PARAMETER_NAMES}
        active, scale = int(state["active_sh_degree"]), float(state["spatial_lr_scale"])
        _check_degree(active, degree_of_rest(tensors["f_rest"].shape[1]))
        schedule = None if self._config is None else AdamSchedule(self._config, scale)
        if self.optimizer is None:
            self._parameters = {name: Parameter(tensor.detach().clone()) for name, tensor in tensors.items()}
        else:
            saved = state["optimizer"]
            if saved is None:
                saved = {name: {"lr": door.get_lr(self.optimizer, name), "state": {}} for name in PARAMETER_NAMES}
            self._parameters = door.load_state(self._parameters, self.optimizer, tensors, saved)
        self.active_sh_degree, self.spatial_lr_scale, self._schedule = active, scale, schedule
        self.f_rest_sets = None

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], device: torch.device | str = "cpu") -> GaussianModel:
        """Build a model without an optimizer from copies of a saved state's parameters on ``device``.

        Raises:
            ValueError: as ``load_state_dict`` does.
        """
        tensors = {name: tensor.to(device) for name, tensor in state["parameters"].items()}
        return cls(tensors, spatial_lr_scale=state["spatial_lr_scale"], active_sh_degree=state["active_sh_degree"])

    # ---- to and from files ----

    def to_splat_data(self, *, antialiased: bool = False) -> SplatData:
        """Copy the raw parameters to float32 NumPy arrays.

        ``antialiased`` records whether training used antialiasing.
        """
        arrays = {name: np.array(p.detach().cpu().numpy(), dtype=np.float32) for name, p in self._parameters.items()}
        return SplatData(**arrays, antialiased=antialiased)

    @classmethod
    def from_splat_data(
        cls,
        data: SplatData,
        *,
        device: torch.device | str = "cpu",
        spatial_lr_scale: float = 1.0,
        active_sh_degree: int | None = None,
    ) -> GaussianModel:
        """Build a model without an optimizer from raw arrays.

        ``active_sh_degree`` defaults to the degree of the arrays.
        """
        tensors = {name: torch.from_numpy(np.array(getattr(data, name))).to(device) for name in PARAMETER_NAMES}
        degree = data.sh_degree if active_sh_degree is None else active_sh_degree
        return cls(tensors, spatial_lr_scale=spatial_lr_scale, active_sh_degree=degree)


def describe_non_finite(tensors: Mapping[str, Tensor]) -> str:
    """A phrase that names each tensor with NaN or infinite values and counts them; empty if all values are finite."""
    # The sums tell in one pass, and with one wait for a GPU, that all values are finite.
    if bool(torch.stack([tensor.detach().sum() for tensor in tensors.values()]).isfinite().all()):
        return ""
    counts = {name: int((~tensor.detach().isfinite()).sum()) for name, tensor in tensors.items()}
    return ", ".join(
        f"{count} of {tensors[name].numel()} values of {name} are not finite"
        for name, count in counts.items()
        if count > 0
    )


def check_model_state(state: Mapping[str, Any]) -> None:
    """Check the values that ``GaussianModel.from_state_dict`` reads from a saved state of plain values.

    Raises:
        ValueError: the state is not one of a trained model: float32 parameters, finite, at least one row.
    """
    tensors, active, scale = (state.get(name) for name in ("parameters", "active_sh_degree", "spatial_lr_scale"))
    if type(tensors) is not dict or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError("the model's parameters are no dict of tensors")
    _check_tensors(tensors)
    if tensors["xyz"].dtype != torch.float32 or len(tensors["xyz"]) == 0:
        raise ValueError(f"xyz: {tensors['xyz'].dtype} with {len(tensors['xyz'])} rows")
    fault = describe_non_finite(tensors)
    if fault:
        raise ValueError(fault)
    if type(active) is not int:
        raise ValueError(f"active_sh_degree is {active!r}")
    _check_degree(active, degree_of_rest(tensors["f_rest"].shape[1]))
    if type(scale) is not float or not 0.0 < scale < math.inf:
        raise ValueError(f"spatial_lr_scale is {scale!r}")


def _check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless ``tensors`` are the six tensors of one model. The message names the faulty tensor."""
    unknown = [name for name in tensors if name not in PARAMETER_NAMES]
    missing = [name for name in PARAMETER_NAMES if name not in tensors]
    if unknown or missing:
        raise ValueError(f"expected exactly {', '.join(PARAMETER_NAMES)}; missing: {missing}, unknown: {unknown}")
    xyz, f_rest = tensors["xyz"], tensors["f_rest"]
    rows = xyz.shape[0] if xyz.dim() > 0 else 0
    rest = f_rest.shape[1] if f_rest.dim() > 1 else 0
    tails = {"xyz": [3], "f_dc": [1, 3], "f_rest": [rest, 3], "opacity": [1], "scaling": [3], "rotation": [4]}
    for name, tail in tails.items():
        tensor = tensors[name]
        if list(tensor.shape) != [rows, *tail]:
            raise ValueError(f"{name}: expected shape {[rows, *tail]}, got {list(tensor.shape)}")
        if not tensor.is_floating_point() or tensor.dtype != xyz.dtype or tensor.device != xyz.device:
            raise ValueError(f"{name}: expected the floating dtype and device of xyz ({xyz.dtype}, {xyz.device})")
    degree_of_rest(rest)


def _check_degree(active: int, highest: int) -> None:
    if not 0 <= active <= highest:
        raise ValueError(f"active_sh_degree: expected 0 to {highest}, got {active}")
