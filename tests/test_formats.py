"""The table of splat formats: which reader or writer a file gets, and that a new format is one new module and one
line."""

from __future__ import annotations

import itertools
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import exit_code
from splats import assert_same_bits, finite_splat, make_splat

from gs_train.errors import UserError
from gs_train.formats import registry
from gs_train.formats.registry import (
    is_splat_file,
    read_splat,
    readable_endings,
    splat_writer,
    writable_endings,
    write_splat,
)

TOY = """
import numpy as np

from gs_train.atomic_write import atomic_write
from gs_train.formats.splat_data import SplatData, SplatFormat

NAMES = ("xyz", "f_dc", "f_rest", "opacity", "scaling", "rotation")


def write(path, data):
    def save(file):
        file.write(b"TOY1")
        np.savez(file, **{name: getattr(data, name) for name in NAMES})

    atomic_write(path, save)


def read(path):
    with path.open("rb") as file:
        file.seek(4)
        return SplatData(**np.load(file))


FORMAT = SplatFormat(read=read, write=write, signature=b"TOY1")
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A format as a contributor adds it: one new file, and one line of the table."""
    (tmp_path / "toy_format.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.FORMATS, ".toy.npz", "toy_format")


@pytest.mark.usefixtures("toy")
def test_a_new_format_reaches_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splat = finite_splat(17, 2)
    write_splat(tmp_path / "a.ply", splat)
    assert exit_code("export", tmp_path / "a.ply", tmp_path / "b.toy.npz") == 0
    assert (tmp_path / "b.toy.npz").read_bytes().startswith(b"TOY1")
    assert exit_code("info", tmp_path / "b.toy.npz") == 0
    assert "17" in capsys.readouterr().out
    assert exit_code("export", tmp_path / "b.toy.npz", tmp_path / "c.ply") == 0
    assert (tmp_path / "c.ply").read_bytes() == (tmp_path / "a.ply").read_bytes()
    assert exit_code("export", tmp_path / "a.ply", tmp_path / "d.xyz") == 2
    assert f"ends in {' or '.join(writable_endings())}." in capsys.readouterr().err
    assert writable_endings()[-1] == ".toy.npz"


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("name", ["plain", "plain.bin", "plain.TOY.NPZ"])
def test_the_content_decides_if_the_ending_is_unknown(tmp_path: Path, name: str) -> None:
    splat = make_splat(5, 1)
    for ending in (".ply", ".toy.npz"):
        write_splat(tmp_path / f"s{ending}", splat)
        (tmp_path / name).write_bytes((tmp_path / f"s{ending}").read_bytes())
        if not (name.endswith(".NPZ") and ending == ".ply"):
            assert is_splat_file(tmp_path / name)
            assert_same_bits(read_splat(tmp_path / name), splat)


def test_the_longest_ending_wins(tmp_path: Path) -> None:
    write_splat(tmp_path / "a.compressed.ply", finite_splat(1, 0))
    assert b"element chunk 1\n" in (tmp_path / "a.compressed.ply").read_bytes()
    for name in ("compressed.ply", "a.b.ply", "A.PLY"):
        write_splat(tmp_path / name, make_splat(1, 0))
        assert b"element chunk" not in (tmp_path / name).read_bytes()
        assert len(read_splat(tmp_path / name)) == 1


def test_every_file_is_read_by_its_content_under_every_name(tmp_path: Path) -> None:
    splat = finite_splat(9)
    endings = [ending for ending in writable_endings() if ending in readable_endings()]
    for ending in endings:
        write_splat(tmp_path / f"a{ending}", splat)
    for held, named in itertools.product(endings, repeat=2):
        file, notes = tmp_path / f"b{named}", list[str]()
        shutil.copy(tmp_path / f"a{held}", file)
        if held == ".splat" != named:
            # Its files have no signature, so that only their name tells them.
            with pytest.raises(UserError, match=rf"b{re.escape(named)} is"):
                read_splat(file)
            continue
        assert_same_bits(read_splat(file, notes.append), read_splat(tmp_path / f"a{held}"))
        warning = f"{file} holds a {held} splat, though its name ends in {named}: it is read as {held}."
        assert notes == ([] if held == named else [warning])


def test_higher_degrees_than_the_format_holds_are_left_out_with_a_word(tmp_path: Path) -> None:
    for ending, degree in ((".splat", 0), (".spz", 3), (".sog", 3), (".glb", 3), (".compressed.ply", 3), (".ply", 4)):
        notes = list[str]()
        write_splat(tmp_path / f"a{ending}", finite_splat(20, 4), notes.append)
        assert read_splat(tmp_path / f"a{ending}").sh_degree == degree
        left_out = [note for note in notes if "Left out the SH degrees" in note]
        assert left_out == [] if degree == 4 else left_out[0].startswith(f"Left out the SH degrees {degree + 1} to 4:")


def test_an_option_of_another_format_is_refused(tmp_path: Path) -> None:
    for ending, option, holder in (
        (".ply", "quality", ".sog"),
        (".sog", "sh_bits", ".spz"),
        (".splat", "spz_axes", ".spz"),
    ):
        flag = f"--{option.replace('_', '-')}"
        with pytest.raises(
            UserError, match=rf"{flag} is an option of {re.escape(holder)}( or \.html)? files, and .*a{ending} is none"
        ):
            write_splat(tmp_path / f"a{ending}", finite_splat(2), **{option: "high"})


@pytest.mark.parametrize("ending", [".splat", ".spz", ".sog", ".glb", ".compressed.ply"])
def test_an_empty_or_damaged_splat_is_not_written(tmp_path: Path, ending: str) -> None:
    with pytest.raises(UserError, match="would have no Gaussians"):
        write_splat(tmp_path / f"a{ending}", finite_splat(0))
    splat = finite_splat(3)
    with pytest.raises(UserError, match="cannot hold NaN or infinite values"):
        write_splat(tmp_path / f"a{ending}", replace(splat, scaling=splat.scaling * np.float32(np.inf)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".splat", ".spz", ".sog", ".glb", ".compressed.ply", ".ply"])
def test_extreme_values_give_files_that_can_be_read(tmp_path: Path, ending: str) -> None:
    largest = np.float32(3e38)
    for name in ("f_dc", "f_rest", "opacity", "scaling", "rotation"):
        for value in (0, largest, -largest, np.float32(1e-42)):
            splat = finite_splat(5, 1)
            extreme = replace(splat, **{name: np.full_like(getattr(splat, name), value)})
            write_splat(tmp_path / f"a{ending}", extreme)
            found = read_splat(tmp_path / f"a{ending}")
            assert len(found) == 5 and found.is_finite().all(), (name, value)


@pytest.mark.parametrize("name", ["a.ksplat", "a", "ply"])
def test_an_unknown_ending_names_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"name a file that ends in {re.escape(' or '.join(writable_endings()))}\.$"):
        splat_writer(tmp_path / name)


def test_a_file_that_is_no_splat(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    assert not is_splat_file(tmp_path / "a.npy")
    endings = re.escape(" or ".join(readable_endings()))
    with pytest.raises(UserError, match=rf"a\.npy is no splat file that gs-train reads: name a {endings} file\.$"):
        read_splat(tmp_path / "a.npy")
    with pytest.raises(UserError, match=r"b\.npy does not exist"):
        read_splat(tmp_path / "b.npy")
