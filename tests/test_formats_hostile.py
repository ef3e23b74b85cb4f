"""Truncated and altered files of every format: they are read, or refused in one sentence that names the file."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import gs_train_here
from splats import trained_splat

from gs_train.errors import UserError
from gs_train.formats.registry import read_splat, write_splat

FILES: dict[str, dict[str, Any]] = {
    "a.ply": {},
    "a.compressed.ply": {},
    "a.splat": {},
    "a.spz": {},
    "four.spz": {"spz_version": 4},
    "a.sog": {},
    "a.glb": {},
}


@pytest.fixture(params=FILES)
def intact(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    options = FILES[request.param]
    if options:
        pytest.importorskip("zstandard", reason="version 4 needs the extra 'zstd'")
    write_splat(tmp_path / request.param, trained_splat(70, 1), **options)
    return tmp_path / request.param


def is_refused(path: Path) -> bool:
    """Whether a file is refused; checks the sentence, and that NumPy warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            read_splat(path)
        except UserError as error:
            text = str(error)
            assert path.name in text and "\n" not in text and len(text) < 500 + len(str(path)), text
            assert text.endswith(".") and ": " in text, "the remedy follows the fault"
            return True
    return False


def test_truncated_files_are_refused(intact: Path) -> None:
    content = intact.read_bytes()
    sizes = {
        0,
        1,
        3,
        4,
        12,
        16,
        20,
        31,
        33,
        45,
        len(content) - 1,
        *np.linspace(50, len(content) - 2, 40).astype(int).tolist(),
    }
    for size in sizes:
        intact.write_bytes(content[:size])
        # A part of a .splat file is a .splat file if it ends with a Gaussian.
        whole = intact.suffix == ".splat" and size % 32 == 0 and size > 0
        assert is_refused(intact) != whole, size


def test_altered_files_are_read_or_refused(intact: Path) -> None:
    content, rng = intact.read_bytes(), random.Random(intact.name)
    for _ in range(150):
        altered = bytearray(content)
        for _ in range(rng.choice((1, 1, 4))):
            place = rng.randrange(min(len(content), 300) if rng.random() < 0.5 else len(content))
            length = rng.choice((1, 4, 8))
            value = rng.choice(
                (rng.randbytes(length), b"\xff" * length, bytes(length), (2**31 - 1).to_bytes(8, "little"))
            )
            altered[place : place + length] = value[:length]
        intact.write_bytes(altered)
        is_refused(intact)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"ply", b"NGSP", b"glTF", b"\x1f\x8b\x08", bytes(64), b"\x89PNG\r\n\x1a\n" * 9]
)
@pytest.mark.parametrize("name", list(FILES))
def test_other_files_under_the_names_of_splats(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    size = len(content)
    # Any bytes of the right length are a .splat.
    assert is_refused(tmp_path / name) != (name == "a.splat" and size > 0 and size % 32 == 0)


def test_a_refused_file_is_one_sentence_on_the_command_line(intact: Path) -> None:
    intact.write_bytes(intact.read_bytes()[:-5])
    for command in (("info", intact), ("export", intact, intact.with_name("out.ply"))):
        done = gs_train_here(*command)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"gs-train: {intact} is ") and done.stderr.count("\n") == 1
    assert not intact.with_name("out.ply").exists()
