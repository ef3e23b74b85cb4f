"""Freezes the list of flags, so that a change of a flag is deliberate; and how arguments become a command. Help is in
test_commands.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from gs_train.commands.registry import load_commands
from gs_train.commands.train import TrainCommand
from gs_train.errors import UserError
from gs_train.flags import flags_of, parse

FLAGS = {
    "train": """
        --out --preset --resume --overwrite --or-resume --json --viewer --viewer-host --viewer-port
        --iterations --max-gaussians --device --background --sh-degree --sh-palette --sh-degree-interval --lambda-dssim
        --start-downscale --full-size-from --batch-size --batch-from --antialiased --no-antialiased
        --init-from --random-points --no-random-points --exposure --refine-poses --no-refine-poses --corrections-until
        --depth-weight --seed --image-cache-gb --save-every --eval-every --keep --log-every
        --images --model --masks --invert-masks --no-invert-masks --alpha --resolution --test-every --test-list
        --skip-missing --no-skip-missing --allow-outside --no-allow-outside
        --ignore-pose-check --no-ignore-pose-check --undistort
        --optimizer.xyz-lr-unit --optimizer.xyz-lr-init --optimizer.xyz-lr-final
        --optimizer.xyz-lr-delay-steps --optimizer.xyz-lr-delay-mult
        --optimizer.xyz-lr-max-steps --optimizer.f-dc-lr --optimizer.f-rest-lr --optimizer.opacity-lr
        --optimizer.scaling-lr --optimizer.rotation-lr --optimizer.late-lr-factor --optimizer.batch-rule
        --density.kind --density.from-iteration --density.until-iteration --density.refine-until-iteration
        --density.interval --density.opacity-reset-interval --density.grad-threshold --density.absgrad-threshold
        --density.percent-dense
        --density.min-opacity --density.reset-opacity-to --density.max-world-scale --density.growth --density.noise-lr
        --density.opacity-reg --density.scale-reg --density.score-views --density.high-error --density.min-contribution
    """,
    "eval": "--scene --device --metrics --download-weights --all-views --json",
    "compare": "--out --all-views",
    "view": "--port --render --device --browser --no-browser",
    "render": "--path --what --frames --depth --width --height --fps --seconds --scene --device",
    "export": """
        --box --max-scale --min-opacity --drop-outliers --no-drop-outliers
        --up --rotate --scale --translate --quality --sh-bits --spz-version --spz-axes
    """,
    "prepare": "--frames",
    "sample": "--seed --views --width --height --points",
    "info": "--json",
    "doctor": "--json",
    "blocks train": "--workers --scheduler --only",
    "blocks status": "--json",
    "blocks merge": "--allow-missing",
    "blocks eval": "--allow-missing --memory-gb --device --json",
}
# A plan takes the settings of a training.
FLAGS["blocks plan"] = f"--out --grid --max-gaussians-per-block --preset {FLAGS['train'].partition('--iterations')[2]}"
FLAGS["blocks plan"] = FLAGS["blocks plan"].replace("--preset", "--preset --iterations", 1)


def test_the_list_of_flags_is_frozen() -> None:
    assert {name: list(flags_of(kind)) for name, kind in load_commands().items()} == {
        name: flags.split() for name, flags in FLAGS.items()
    }


def test_preset_then_flags() -> None:
    command = parse(
        ["train", "scene", "--preset=paper", "--iterations", "70", "--density.interval", "0.5", "--no-antialiased"]
    )
    assert isinstance(command, TrainCommand)
    assert command.scene == Path("scene")
    assert command.config.iterations == 70
    assert command.config.density.interval == 0.5
    assert command.config.density.until_iteration == 15_000


def test_a_decimal_point_makes_a_fraction() -> None:
    command = parse(["train", "scene", "--density.until-iteration", "1", "--density.from-iteration", "1.0"])
    assert isinstance(command, TrainCommand)
    assert type(command.config.density.until_iteration) is int
    assert type(command.config.density.from_iteration) is float


def test_underscores_do_for_hyphens() -> None:
    command = parse(["train", "scene", "--max_gaussians", "7", "--density.grad_threshold=1e-3"])
    assert isinstance(command, TrainCommand)
    assert command.config.max_gaussians == 7
    assert command.config.density.grad_threshold == 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian scene", "no subcommand trian (did you mean train?)"),
        ("train scene --iteration 5", "no flag --iteration (did you mean --iterations?)"),
        ("train scene --xyzzy", "no flag --xyzzy: see"),
        ("train --unknown 5 scene", "no flag --unknown"),
        ("train scene other", "train takes no argument other"),
        ("train scene --iterations many", "--iterations: many is not a whole number"),
        ("train scene --iterations 5.5", "--iterations: 5.5 is not a whole number"),
        ("train scene --lambda-dssim x", "--lambda-dssim: x is not a number"),
        ("train scene --density.interval x", "--density.interval: x is not a number"),
        ("train scene --iterations", "--iterations"),
        ("train scene --resolution 3", "'3' for argument '--resolution'"),
        ("train scene --device gpu", "--device gpu: expected auto, cpu, cuda, or cuda:N"),
        ("train scene --iterations -5", "--iterations is -5"),
        ("eval", "RUN is missing"),
        ("eval run --device tpu", "--device tpu: expected auto, cpu, cuda"),
        ("export run", "OUT.ply is missing"),
        ("sample dir --views 1", "--views is 1"),
        ("prepare photos dir --frames x", "--frames: x is not a whole number"),
        ("doctor --verbose", "doctor has no flag --verbose"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(arguments: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(arguments.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "flag", ["--out x", "--preset paper", "--overwrite", "--seed 3", "--density.interval 5", "--test-every 0"]
)
def test_flags_that_would_make_another_run_are_refused_with_resume(own_run: Path, flag: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(["train", "--resume", str(own_run), *flag.split()])
    assert str(caught.value).startswith(flag.split(maxsplit=1)[0])


def test_resume_starts_from_the_config_of_the_run(own_run: Path, tiny_scene: Path) -> None:
    command = parse(["train", "--resume", str(own_run), "--iterations", "99", "--keep=5"])
    assert isinstance(command, TrainCommand)
    assert command.scene == tiny_scene
    assert (command.config.iterations, command.config.keep, command.config.max_gaussians) == (99, 5, 2000)
