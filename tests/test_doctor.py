"""``gs-train doctor``: how findings become output and exit code, on this machine and on simulated machines."""

from __future__ import annotations

import sys

import pytest
import torch
from command_line import gs_train

from gs_train import cli
from gs_train.commands import doctor
from gs_train.commands.doctor import Finding, examine

PARTS = [
    "gs-train",
    "Python",
    "torch",
    "nvcc",
    "gsplat",
    "Numba",
    "kernel cache",
    "CPU kernels",
    "pycolmap",
    "imageio-ffmpeg",
    "pillow-heif",
    "zstandard",
    "flip-evaluator",
]


def run_doctor(capsys: pytest.CaptureFixture[str]) -> tuple[object, list[str]]:
    with pytest.raises(SystemExit) as done:
        cli.main(["doctor"])
    return done.value.code, capsys.readouterr().out.splitlines()


def test_the_exit_code_on_this_machine_follows_from_the_findings() -> None:
    done = gs_train("doctor")
    lines = done.stdout.splitlines()
    assert [line.startswith(name) for name, line in zip(PARTS, lines, strict=False)] == [True] * len(PARTS)
    assert len(lines) == len(PARTS) + 1  # the last line names a remedy or reports none
    assert done.returncode == any(finding.remedy for finding in examine()), done.stdout + done.stderr


def test_the_cpu_kernels_are_tried_out() -> None:
    (finding,) = (finding for finding in examine() if finding.name == "CPU kernels")
    assert finding.remedy is None, finding.message


def test_a_check_that_raises_is_a_finding_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Finding:
        raise OSError("libtbb.so:\n cannot open")

    monkeypatch.setattr(doctor, "_numba", broken)
    findings = {finding.name: finding for finding in examine()}
    assert list(findings) == PARTS
    assert findings["Numba"].message == "fails: libtbb.so: cannot open"
    assert findings["Numba"].remedy == f"{sys.executable} -m pip install --force-reinstall numba"


def test_a_driver_without_a_cuda_build_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    finding = doctor._torch()
    release = torch.__version__.partition("+")[0]
    assert finding.remedy == f"{sys.executable} -m pip install --force-reinstall torch=={release}"
    monkeypatch.setattr(doctor.shutil, "which", lambda *_, **__: None)
    assert doctor._torch().remedy is None  # no driver: the CPU is the intended device


@pytest.mark.parametrize(
    ("remedies", "code", "last"), [((None, None), 0, None), ((None, "do this", "then"), 1, "do this")]
)
def test_the_first_remedy_is_named(
    remedies: tuple[str | None, ...],
    code: int,
    last: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    findings = [Finding(name=f"part {i}", message="seen", remedy=remedy) for i, remedy in enumerate(remedies)]
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    found, lines = run_doctor(capsys)
    assert found == code
    assert lines[:-1] == [f"part {i}  seen" for i in range(len(remedies))]
    assert last is None or lines[-1].endswith(f": {last}")
    assert "then" not in lines[-1] or last is None


def test_a_missing_extra_is_named_with_its_command_and_is_no_fault() -> None:
    finding = doctor._extra("no-such-package", "sfm", "gs-train prepare")
    assert finding.remedy is None
    assert "gs-train prepare needs it" in finding.message and '-e ".[sfm]"' in finding.message
