"""The file of a checkpoint: every flipped bit is noticed, and a file made on purpose costs neither memory nor code."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import rewrite, seal, write_unchecked
from command_line import environment, gs_train_here

from gs_train.run.checkpoint import list_checkpoints
from gs_train.run.checkpoint_file import NotIntact, read_content, write_content
from gs_train.run.structure import Anything, DictOf, ListOf, check_like, check_plain

CONTENT = {"a": torch.arange(3.0), "b": {"c": [1, 2.5, None, True, "text"]}}


def written(path: Path, content: dict[str, Any] = CONTENT) -> bytes:
    with path.open("w+b") as file:
        write_content(content, file)
    return path.read_bytes()


# ---- the checksum


def test_the_content_comes_back_and_torch_reads_it_too(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    written(path)
    content, has_checksum = read_content(path)
    assert has_checksum
    for read in (content, torch.load(path, weights_only=True)):
        assert torch.equal(read["a"], CONTENT["a"])  # type: ignore[arg-type]
        assert read["b"] == CONTENT["b"]


def test_a_flipped_bit_of_any_byte_is_noticed(tmp_path: Path) -> None:
    """Also in the headers of the zip, where zipfile and torch read different places. All bits: scripts/try_flips.py."""
    path = tmp_path / "a.pt"
    data = written(path, {"a": torch.arange(3.0)})
    silent = []
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        try:
            _, has_checksum = read_content(path)
        except NotIntact:
            continue
        if has_checksum:
            silent.append(place)
    assert silent == []


@pytest.mark.parametrize("keep", [0, 1, 60, 66, 67, 500, -1, -64, -66])
def test_a_cut_file_is_noticed(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(written(path)[:keep])
    try:
        _, has_checksum = read_content(path)
    except NotIntact:
        return
    assert not has_checksum


def test_a_folder_and_a_missing_file_are_not_intact(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(NotIntact):
            read_content(path)


# ---- all written values can be read


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float64(1.0), "float64"),
        ({1.5: 0}, "a key of type float"),
        ({"set": {1}}, "content.x.set is a set"),
        (2**70, "64 bits"),
        (torch.zeros(3).to_sparse(), "dense"),
        (torch.zeros(3, dtype=torch.uint16), "dtype"),
        ([torch.zeros(1).expand(10**9)], r"content\.x\.0 repeats its memory"),
        ([torch.zeros(100_000)] * 2, "several times"),
    ],
)
def test_a_value_that_could_not_be_read_is_refused_when_it_is_written(tmp_path: Path, value: Any, message: str) -> None:
    if isinstance(value, list) and len(value) == 2:
        value = [value[0], value[0]]
    with (tmp_path / "a.pt").open("w+b") as file, pytest.raises(ValueError, match=message):
        write_content({"x": value}, file)


# ---- files made on purpose; all have the right checksum


def zipped(path: Path, parts: dict[str, bytes], method: int = zipfile.ZIP_STORED, before: bytes = b"") -> None:
    with path.open("w+b") as file:
        file.write(before)
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, data in parts.items():
                archive.writestr(name, data)
        seal(file)


def pickled(path: Path, data: bytes) -> None:
    zipped(path, {"a/data.pkl": b"\x80\x02" + data + b"."})


def saved(path: Path, content: Any) -> None:
    with path.open("w+b") as file:
        write_unchecked(content, file)


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def equal_lists(depth: int) -> Any:
    """Lists of two equal lists: ``depth`` values in the file, two to the power of ``depth`` to a reader."""
    value: Any = 0
    for _ in range(depth):
        value = [value, value]
    return value


def endless_list() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def old_format() -> bytes:
    """A file of torch before 1.6. torch reads a file that starts like one so, also if a zip follows."""
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


MADE: dict[str, Callable[[Path], None]] = {
    "compressed zeros": lambda path: zipped(path, {"a/data.pkl": bytes(2**28)}, zipfile.ZIP_DEFLATED),
    "bytearray": lambda path: zipped(path, {"a/data.pkl": pickle.dumps(Calls(bytearray, 2**33), 2)}),
    "tensor by its size": lambda path: zipped(path, {"a/data.pkl": pickle.dumps(Calls(torch.Tensor, 2**31), 2)}),
    "code": lambda path: zipped(path, {"a/data.pkl": pickle.dumps(Calls(os.mkdir, str(path.with_name("ran"))), 2)}),
    "repeated tensor": lambda path: saved(path, {"a": torch.zeros(1).expand(10**9)}),
    "tensor in many places": lambda path: saved(path, {"a": [torch.zeros(2**20)] * 1000}),
    "equal lists": lambda path: saved(path, {"a": equal_lists(60)}),
    "list in itself": lambda path: saved(path, {"a": endless_list()}),
    "deep tuples": lambda path: pickled(path, b"N" + b"\x85" * 1_000_000),
    "large memo": lambda path: pickled(path, b"Nr" + struct.pack("<I", 2**32 - 1)),
    "long text": lambda path: pickled(path, b"X" + struct.pack("<I", 2**32 - 1) + b"a"),
    "no pickle": lambda path: zipped(path, {"a/other": b""}),
    "empty pickle": lambda path: zipped(path, {"a/data.pkl": b""}),
    "two pickles": lambda path: zipped(path, {"a/data.pkl": b"\x80\x02N.", "b/data.pkl": b"\x80\x02N."}),
    "TorchScript": lambda path: zipped(path, {"a/data.pkl": b"\x80\x02N.", "a/constants.pkl": b"\x80\x02N."}),
    "old format before a zip": lambda path: zipped(path, {"a/data.pkl": b"\x80\x02N."}, before=old_format()),
    "list": lambda path: saved(path, [1, 2]),
    "ordered dict": lambda path: saved(path, OrderedDict(a=1)),
    "set": lambda path: saved(path, {"a": {1}}),
}

READ = """
import resource, sys, warnings
from pathlib import Path
from gs_train.run.checkpoint import DamagedCheckpoint, read_checkpoint
warnings.simplefilter("error")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        read_checkpoint(Path(path))
    except DamagedCheckpoint as error:
        print(Path(path).stem, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, sep="|")
"""


@pytest.mark.skipif(os.name == "nt", reason="the peak of memory comes from POSIX")
def test_files_made_on_purpose_are_refused_without_memory_and_without_a_warning(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.pt" for name in MADE]
    for path, make in zip(paths, MADE.values(), strict=True):
        make(path)
    done = subprocess.run(
        [sys.executable, "-c", READ, *map(str, paths)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == list(MADE)
    assert int(lines[-1][1]) < 200_000, done.stdout  # kB
    assert not (tmp_path / "ran").exists()


# ---- the structure


def at(content: Any, where: str) -> tuple[Any, Any]:
    """The dict or list that holds the dotted name, and the last key."""
    *parents, last = where.split(".")
    for part in parents:
        content = content[int(part) if isinstance(content, list) else part]
    return content, int(last) if isinstance(content, list) else last


OTHER_VALUES: list[Any] = [
    None,
    True,
    -1,
    2**62,
    float("nan"),
    "\x1b[31mtext",
    [],
    [1],
    {},
    {"a": 1},
    torch.zeros(0),
    torch.zeros(2, 3),
    torch.tensor(7),
    torch.tensor([True]),
    torch.full((3,), torch.nan, dtype=torch.float64),
]


def places(content: Any, where: str = "") -> list[str]:
    """The dotted names of all values."""
    entries: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        entries = list(content.items())
    elif isinstance(content, list):
        entries = list(enumerate(content))
    found = []
    for key, value in entries:
        name = f"{where}{key}"
        found += [name, *places(value, f"{name}.")]
    return found


@pytest.mark.slow
def test_content_of_another_type_or_shape_is_told_in_one_sentence(own_run: Path, tmp_path: Path) -> None:
    """Every value of a checkpoint is replaced, removed or joined by another: the content is refused, or harmless."""
    newest = list_checkpoints(own_run / "checkpoints")[0]
    rng = np.random.default_rng(0)
    intact = newest.read_bytes()
    passed = []
    names = [name for name in places(torch.load(newest, weights_only=True)) if not name.startswith("config.")]
    for name in [*names, "config", "config.density", "config.background", "config.antialiased"]:
        for path in list_checkpoints(own_run / "checkpoints"):
            path.unlink()
        newest.write_bytes(intact)

        def change(content: Any, name: str = name) -> None:
            holder, key = at(content, name)
            kind = rng.integers(3)
            if kind == 0:
                del holder[key]
            elif kind == 1 and isinstance(holder, dict):
                holder[f"{key}_2"] = holder[key]
            else:
                holder[key] = OTHER_VALUES[rng.integers(len(OTHER_VALUES))]

        rewrite(newest, change)
        if not refuses(own_run, newest, tmp_path / "out.ply", name):
            passed.append(name)
    # Some texts and numbers may have any value.
    assert len(passed) < 0.2 * len(names), passed


def refuses(run: Path, newest: Path, target: Path, name: str) -> bool:
    """Whether ``info``, ``export`` or a resume refuses the checkpoint. Every other end is an error."""
    codes = []
    for command in (["info", newest], ["export", newest, target], ["train", "--resume", run, "--iterations", 25]):
        done = gs_train_here(*command)
        assert done.returncode in (0, 2), (name, done.stderr)
        assert done.returncode == 0 or done.stderr.strip().splitlines()[-1].startswith("gs-train: "), name
        assert "\x1b" not in done.stdout + done.stderr
        codes.append(done.returncode)
    return 2 in codes


@pytest.mark.parametrize(
    ("value", "template", "message"),
    [
        (1, 1.0, "state is a int instead of a float"),
        (True, 1, "state is a bool instead of a int"),
        ({"a": 1}, {"a": 1, "b": 1}, "state lacks or has too many: b"),
        ({"a": 1, "c": 1}, {"a": 1}, "state lacks or has too many: c"),
        ({"a": [1, "x"]}, {"a": [0, 0]}, r"state\.a\.1 is a str"),
        ([1], [0, 0], "1 entries instead of 2"),
        ((1,), [0], "tuple"),
        (float("inf"), 0.0, "state is inf"),
        (None, 0, "NoneType"),
        (torch.zeros(3), torch.zeros(4), r"float32 \[3\] instead of torch.float32 \[4\]"),
        (torch.zeros(3), torch.zeros(3, 1), "instead of"),
        (torch.zeros(3, dtype=torch.float64), torch.zeros(3), "float64"),
        (0, torch.zeros(3), "int instead of a Tensor"),
        ([1, "a"], ListOf(0), r"state\.1 is a str"),
        ({1: 0.0}, DictOf(0.0), "a key of state is a int"),
        ({"a": 1}, DictOf(0.0), r"state\.a is a int"),
    ],
)
def test_values_unlike_their_template(value: Any, template: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_like(value, template)


def test_values_like_their_template() -> None:
    rows = {"xyz": torch.zeros(7, 3), "step": torch.zeros(()), "other": torch.zeros(2)}
    check_like(rows, {"xyz": torch.ones(5, 3), "step": torch.ones(()), "other": torch.ones(2)}, rows=(5, 7))
    with pytest.raises(ValueError, match="xyz"):
        check_like(rows, rows, rows=(7, 5))
    check_like({"a": [1, 2], "b": {"x": 0.5}, "c": object}, {"a": ListOf(0), "b": DictOf(0.0), "c": Anything()})
    check_plain({"a": [torch.zeros(2), (1, 2.5, None, "x", True)]}, most_values=9, most_bytes=8)
    with pytest.raises(ValueError, match="several times"):
        check_plain([0] * 9, most_values=9, most_bytes=8)
