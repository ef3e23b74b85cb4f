"""The rasterizer that ``--device`` selects, its messages, and the call of gsplat. A fake gsplat replaces the GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numba
import pytest
import torch

from gs_train.cameras.camera import Camera
from gs_train.errors import UserError
from gs_train.kernels import cache
from gs_train.kernels.jit import report_compilation
from gs_train.render import gsplat_cuda
from gs_train.render.select import select_rasterizer

CAMERA = Camera(width=6, height=4, fx=5.0, fy=5.5, cx=2.5, cy=2.0)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def stage_backend(monkeypatch: pytest.MonkeyPatch, compiled: object) -> None:
    """Install a loaded gsplat backend with ``_C = compiled``, so that nothing compiles."""
    import gsplat.cuda

    backend = ModuleType("gsplat.cuda._backend")
    backend._C = compiled  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", backend)
    monkeypatch.setattr(gsplat.cuda, "_backend", backend, raising=False)


def test_cpu_on_request(gpu: None, said: list[str]) -> None:
    selection = select_rasterizer("cpu", said.append)
    assert selection.rasterizer.name == "cpu"
    assert selection.device == torch.device("cpu")
    assert selection.reason == "cpu: asked for by --device cpu"


def test_auto_without_gpu_is_the_cpu(no_gpu: None, said: list[str]) -> None:
    also: list[str] = []
    selection = select_rasterizer("auto", said.append, also_compile=[lambda: also.append("compiled")])
    assert selection.rasterizer.name == "cpu"
    assert selection.reason == "cpu: torch sees no CUDA device"
    assert also == ["compiled"]


def test_compiling_the_cpu_kernels_is_announced_and_timed(said: list[str]) -> None:
    function = numba.njit(lambda x: x + 1)
    for expected in (2, 2):
        with report_compilation(said.append):
            assert function(1) == 2
        # The second call compiles nothing and prints nothing.
        assert len(said) == expected
    assert said[0].startswith("Compiling the CPU kernels")
    assert said[1].startswith("Compiled 1 kernels in ")


def test_a_cache_folder_that_cannot_be_written_to_is_named(
    said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "file" / "kernels")
    function = numba.njit(lambda x: x + 1)
    with report_compilation(said.append):
        function(1)
    assert "not kept" in said[1] and str(tmp_path / "file" / "kernels") in said[1] and "NUMBA_CACHE_DIR" in said[1]


def test_cuda_without_gpu_is_refused(no_gpu: None, said: list[str]) -> None:
    with pytest.raises(UserError, match=r"^--device cuda: torch sees no CUDA device; .* use --device cpu\.$"):
        select_rasterizer("cuda", said.append)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_gpu_with_kernels_uses_gsplat(device: Any, gpu: None, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stage_backend(monkeypatch, compiled=object())
    selection = select_rasterizer(device, said.append)
    assert selection.rasterizer.name == "gsplat"
    assert selection.device == torch.device("cuda", 0)
    assert selection.reason.startswith("cuda: NVIDIA Test, gsplat 1.")
    assert "\n" not in selection.reason


def test_a_gpu_without_toolkit_selects_the_cpu(gpu: None, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stage_backend(monkeypatch, compiled=None)
    selection = select_rasterizer("auto", said.append)
    assert selection.rasterizer.name == "cpu"
    assert (
        selection.reason
        == "cpu: there is NVIDIA Test, but gsplat found no CUDA toolkit (nvcc) to compile its kernels with"
    )
    with pytest.raises(UserError, match=r"^--device cuda: gsplat found no CUDA toolkit .*--device cpu\.$"):
        select_rasterizer("cuda", said.append)


def test_kernels_that_do_not_load_are_reported_in_one_line(
    gpu: None, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # None in sys.modules makes the import raise, like a missing dependency that gsplat does not declare.
    stage_backend(monkeypatch, compiled=object())
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", None)
    monkeypatch.delattr("gsplat.cuda._backend")
    selection = select_rasterizer("auto", said.append)
    assert selection.rasterizer.name == "cpu"
    assert "gsplat's CUDA kernels do not load (" in selection.reason
    assert "\n" not in selection.reason


@pytest.mark.parametrize(("built", "lines"), [(True, 0), (False, 1)])
def test_compiling_the_cuda_kernels_is_announced(
    built: bool, lines: int, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage_backend(monkeypatch, compiled=object())
    monkeypatch.setattr(gsplat_cuda, "kernels_built", lambda: built)
    assert gsplat_cuda.why_unusable(said.append) is None
    assert len(said) == lines
    assert all("minutes" in line for line in said)


def stage_rasterization(monkeypatch: pytest.MonkeyPatch, calls: list[dict[str, Any]]) -> None:
    """Replace gsplat.rasterization by a small differentiable fake that returns tensors of the same shapes."""
    import gsplat

    def rasterization(**arguments: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        calls.append(arguments)
        shape = (1, arguments["height"], arguments["width"])
        means2d = arguments["means"][None, :, :2] * 2.0
        colours = means2d.sum() * torch.ones(*shape, 3)
        radii = torch.ones(1, len(arguments["means"]), 2, dtype=torch.int32)
        if arguments["absgrad"]:
            # gsplat sets absgrad in its backward pass, before the gradient arrives at means2d.
            means2d.absgrad = torch.full_like(means2d, 7.0)
        return colours, torch.full((*shape, 1), 0.25), {"means2d": means2d, "radii": radii}

    monkeypatch.setattr(gsplat, "rasterization", rasterization)


def small_model(count: int = 3) -> Any:
    xyz = torch.arange(count * 3, dtype=torch.float32).reshape(count, 3).requires_grad_()
    return SimpleNamespace(
        xyz=xyz,
        rotation=torch.ones(count, 4),
        scales=lambda: torch.ones(count, 3),
        opacities=lambda: torch.full((count,), 0.5),
        f_dc=torch.ones(count, 1, 3),
        f_rest=torch.zeros(count, 3, 3),
        active_sh_degree=1,
    )


def test_gsplat_is_called_with_unpacked_arguments_and_no_background(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    stage_rasterization(monkeypatch, calls)
    background = torch.tensor([0.0, 0.5, 1.0])
    model = small_model()
    output = gsplat_cuda.GsplatRasterizer().render(model, CAMERA, torch.eye(4), background)

    (call,) = calls
    assert call["packed"] is False
    assert call["rasterize_mode"] == "classic" and call["absgrad"] is False
    assert "backgrounds" not in call
    assert call["sh_degree"] == 1
    assert call["colors"].shape == (3, 4, 3)
    assert call["viewmats"].shape == (1, 4, 4)
    assert call["Ks"][0].tolist() == [[5.0, 0.0, 2.5], [0.0, 5.5, 2.0], [0.0, 0.0, 1.0]]
    assert output.image.shape == (4, 6, 3)
    assert output.alpha.shape == (4, 6)
    assert output.radii.shape == (3, 2)
    unlit = model.xyz[:, :2].sum() * 2.0
    torch.testing.assert_close(output.image[0, 0], unlit + 0.75 * background)


def test_means2d_receives_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    stage_rasterization(monkeypatch, [])
    model = small_model()
    output = gsplat_cuda.GsplatRasterizer().render(model, CAMERA, torch.eye(4), torch.zeros(3))
    assert output.screen_gradient() is None
    output.image.sum().backward()
    pixels_and_channels = 4 * 6 * 3
    gradient = output.screen_gradient()
    assert gradient is not None
    assert gradient.tolist() == [[pixels_and_channels] * 2] * 3
    assert model.xyz.grad[:, :2].tolist() == [[2 * pixels_and_channels] * 2] * 3


def test_absolute_gradients_and_antialiasing_are_passed_to_gsplat(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    stage_rasterization(monkeypatch, calls)
    rasterizer = gsplat_cuda.GsplatRasterizer(antialiased=True)
    output = rasterizer.render(small_model(), CAMERA, torch.eye(4), torch.zeros(3), absgrad=True)
    output.image.sum().backward()
    assert calls[0]["rasterize_mode"] == "antialiased" and calls[0]["absgrad"] is True
    gradient = output.screen_gradient(absolute=True)
    assert gradient is not None
    assert gradient.tolist() == [[7.0, 7.0]] * 3


def test_rendering_works_under_no_grad(monkeypatch: pytest.MonkeyPatch) -> None:
    stage_rasterization(monkeypatch, [])
    with torch.no_grad():
        output = gsplat_cuda.GsplatRasterizer().render(small_model(), CAMERA, torch.eye(4), torch.zeros(3))
    assert not output.image.requires_grad
    assert output.screen_gradient() is None
