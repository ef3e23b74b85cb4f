"""TrainConfig, presets and TOML: round trips keep every value, fractions become iterations once, and unknown keys are
refused."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gs_train.config.settings import TrainConfig
from gs_train.config.toml import load_preset, preset_names, read_config, write_toml
from gs_train.density.config import DensityConfig
from gs_train.errors import UserError
from gs_train.model.schedule import OptimizerConfig
from gs_train.scene.load import SceneConfig

ROOT = Path(__file__).resolve().parent.parent


def test_the_preset_default_equals_the_defaults() -> None:
    assert load_preset("default") == TrainConfig()


def test_every_preset_has_a_description_and_loads() -> None:
    assert preset_names() == ["classic", "default", "fast", "paper", "quality", "tiny"]
    for name in preset_names():
        assert (ROOT / "configs" / f"{name}.toml").read_text().startswith("# "), "a preset says what it is for"
        load_preset(name).resolved()


def test_paper_preset_has_the_original_numbers() -> None:
    config = load_preset("paper")
    assert (config.iterations, config.sh_degree, config.sh_degree_interval, config.lambda_dssim) == (
        30_000,
        3,
        1000,
        0.2,
    )
    density, rates = config.density, config.optimizer
    assert (density.from_iteration, density.until_iteration, density.interval, density.opacity_reset_interval) == (
        500,
        15_000,
        100,
        3000,
    )
    assert (density.grad_threshold, density.percent_dense, density.min_opacity, density.reset_opacity_to) == (
        0.0002,
        0.01,
        0.005,
        0.01,
    )
    assert (rates.xyz_lr_init, rates.xyz_lr_final, rates.xyz_lr_max_steps) == (1.6e-4, 1.6e-6, 30_000)
    assert (rates.f_dc_lr, rates.f_rest_lr, rates.opacity_lr, rates.scaling_lr, rates.rotation_lr) == (
        0.0025,
        0.000125,
        0.025,
        0.005,
        0.001,
    )
    assert rates.late_lr_factor == 1.0
    assert config == config.resolved()


def test_paper_schedule_does_not_follow_the_iterations() -> None:
    short = replace(load_preset("paper"), iterations=20_000).resolved()
    assert short.density.until_iteration == 15_000


@pytest.mark.parametrize(
    ("iterations", "until", "refine_until"), [(3000, 2000, 2500), (7000, 6000, 6500), (60, 40, 50)]
)
def test_no_round_or_reset_on_the_last_iterations(iterations: int, until: int, refine_until: int) -> None:
    """Whole-numbered schedules would end on a reset: paper --iterations 3000 ended 30 dB lower than with 2999."""
    density = replace(load_preset("paper"), iterations=iterations).resolved().density
    assert (density.until_iteration, density.refine_until_iteration) == (until, refine_until)


def test_classic_schedule_scales_with_the_iterations() -> None:
    short = replace(load_preset("classic"), iterations=2000).resolved()
    assert short.density.until_iteration == 1000
    # Short runs keep these intervals, because a round needs many views and opacities recover slowly after a reset.
    assert short.density.opacity_reset_interval == 3000
    assert short.density.interval == 100
    assert short.optimizer.xyz_lr_max_steps == 2000
    assert short.sh_degree_interval == 67


def test_a_resolved_schedule_stays_when_the_iterations_grow() -> None:
    resolved = replace(TrainConfig(), iterations=300).resolved()
    longer = replace(resolved, iterations=900)
    assert replace(longer.resolved(), iterations=300) == resolved


def test_a_fraction_above_zero_is_at_least_one_iteration_and_zero_stays_zero() -> None:
    tiny = TrainConfig(iterations=3, density=DensityConfig(opacity_reset_interval=0.01, from_iteration=0.0)).resolved()
    assert tiny.density.opacity_reset_interval == 1
    assert tiny.density.from_iteration == 0
    assert all(
        isinstance(value, int)
        for value in (tiny.density.from_iteration, tiny.density.interval, tiny.sh_degree_interval)
    )


# ---- TOML


def written(config: TrainConfig, folder: Path, scene: Path | None = None) -> Path:
    path = folder / "config.toml"
    path.write_text(write_toml(config, scene), encoding="utf-8")
    return path


def test_round_trip_of_the_defaults_and_the_resolved(tmp_path: Path) -> None:
    for config in (TrainConfig(), TrainConfig(iterations=777).resolved(), load_preset("paper")):
        assert read_config(written(config, tmp_path)) == (config, None)


@settings(max_examples=100, deadline=None)
@given(
    images=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    number=st.floats(0, 1e30, exclude_max=True),
    fraction=st.floats(0, 1),
    whole=st.integers(1, 2**40),
    scene=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20),
)
def test_round_trip_of_any_value(
    tmp_path_factory: pytest.TempPathFactory, images: str, number: float, fraction: float, whole: int, scene: str
) -> None:
    config = TrainConfig(
        iterations=whole,
        background="white" if whole % 2 == 0 else "learned",
        image_cache_gb=number,
        scene=SceneConfig(images=images, resolution=4),
        optimizer=OptimizerConfig(xyz_lr_init=number),
        density=DensityConfig(from_iteration=fraction, until_iteration=whole, grad_threshold=number),
    )
    path = written(config, tmp_path_factory.mktemp("toml"), Path(scene))
    assert read_config(path) == (config, Path(scene))


def test_text_is_valid_toml_for_another_reader() -> None:
    table = tomllib.loads(write_toml(TrainConfig(), Path('/a/"b"\\c\n')))
    assert table["scene_path"] == '/a/"b"\\c\n'
    assert set(table) >= {"iterations", "scene", "optimizer", "density"}


def test_whole_number_and_fraction_keep_their_type(tmp_path: Path) -> None:
    config = TrainConfig(density=DensityConfig(until_iteration=1, from_iteration=1.0))
    again = read_config(written(config, tmp_path))[0]
    assert type(again.density.until_iteration) is int
    assert type(again.density.from_iteration) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("iteratons = 5", "unknown key iteratons (did you mean iterations?)"),
        ("[density]\ninterva = 5", "unknown key density.interva (did you mean interval?)"),
        ("[densty]\ninterval = 5", "unknown key densty (did you mean density?)"),
        ("density = 5", "it must be a table [density]"),
        ("iterations = 5.0", "key iterations is 5.0; it must be a whole number"),
        ("iterations = true", "it must be a whole number"),
        ("iterations = 0", "--iterations is 0: give a whole number of at least 1"),
        ('lambda_dssim = "0.2"', "it must be a number"),
        ("antialiased = 1", "it must be true or false"),
        ("[scene]\nresolution = 3", "key scene.resolution is 3; it must be one of -1, 1, 2, 4, 8"),
        ("[scene]\nimages = 3", "it must be text"),
        ('device = "tpu"', "--device tpu: expected auto, cpu, cuda"),
        ("scene_path = 3", "key scene_path is 3; it must be text"),
        ("iterations = ", "cannot be read as TOML"),
    ],
)
def test_unknown_keys_and_wrong_types_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_config(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_whole_number_is_accepted_for_a_float(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("lambda_dssim = 0")
    value = read_config(path)[0].lambda_dssim
    assert (value, type(value)) == (0.0, float)


def test_preset_by_path_and_a_run_config_as_preset(tmp_path: Path) -> None:
    path = written(TrainConfig(iterations=12), tmp_path, Path("/somewhere"))
    assert load_preset(str(path)) == TrainConfig(iterations=12)


@pytest.mark.parametrize(
    ("name", "message"),
    [("papr", "did you mean paper?"), ("no/such.toml", "there is no such file"), ("", "there is no such preset")],
)
def test_unknown_presets(name: str, message: str) -> None:
    with pytest.raises(UserError, match="--preset"):
        load_preset(name)
    with pytest.raises(UserError) as caught:
        load_preset(name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("iterations", 0, "--iterations"),
        ("max_gaussians", 0, "--max-gaussians"),
        ("keep", 0, "--keep"),
        ("save_every", 0, "--save-every"),
        ("log_every", 0, "--log-every"),
        ("seed", -1, "--seed"),
        ("seed", 2**62, "--seed"),
        ("image_cache_gb", -0.5, "--image-cache-gb"),
        ("image_cache_gb", float("inf"), "--image-cache-gb"),
        ("image_cache_gb", float("nan"), "--image-cache-gb"),
        ("image_cache_gb", 1e300, "--image-cache-gb"),
        ("sh_degree", 4, "--sh-degree"),
        ("lambda_dssim", 1.5, "--lambda-dssim"),
        ("lambda_dssim", float("nan"), "--lambda-dssim"),
        ("sh_degree_interval", 0, "--sh-degree-interval"),
        ("sh_degree_interval", 1.5, "--sh-degree-interval"),
        ("sh_degree_interval", float("nan"), "--sh-degree-interval"),
    ],
)
def test_checks_name_the_flag(field: str, value: float, flag: str) -> None:
    with pytest.raises(UserError) as caught:
        replace(TrainConfig(), **{field: value})  # type: ignore[arg-type]
    assert str(caught.value).startswith(flag)


def test_the_config_of_a_run_of_another_version_says_so(tmp_path: Path) -> None:
    path = written(TrainConfig(), tmp_path, Path("/scene"))
    path.write_text(path.read_text().replace("[optimizer]", "[optimizer]\nf_rest_interval = 1"))
    with pytest.raises(UserError) as caught:
        read_config(path)
    assert str(caught.value) == (
        f"{path}: unknown key optimizer.f_rest_interval (did you mean f_rest_lr?); use the version of "
        "gs-train that trained the run, or remove the key from the file."
    )


@pytest.mark.parametrize("name", ["iterations", "max_gaussians", "seed"])
def test_whole_numbers_beyond_what_files_hold_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="at most 9007199254740992"):
        TrainConfig(**{name: 10**30})
