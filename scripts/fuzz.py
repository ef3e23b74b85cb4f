"""Alters valid inputs of every reader at random, and runs commands on them.

    python scripts/fuzz.py [--number 10000] [--seed 0] [--only NUMBER] [--seconds 20]

Each input of fuzz_inputs.py is a small scene, run, splat or preset of which one file is altered: bytes, numbers in
texts, values in JSON and TOML, and values of a checkpoint that keeps its right checksum. Every command must end with
code 0, or with code 2 and one sentence. Counted as faults are tracebacks and other codes, hangs, more than 2 GB of
memory, and control characters on the terminal. Prints the counts as a Markdown table, and each kind of
fault once, with the number that --only repeats. POSIX only.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import io
import json
import os
import pickle
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from fuzz_inputs import Target, fake_pycolmap, make_targets

from gs_train import cli
from gs_train.run import checkpoint_file

MOST_BYTES = 2 * 10**9
NUMBERS = ["0", "-1", "1", "1e309", "-1e30", "1e-40", "nan", "inf", "65536", "2147483648", "9" * 30, "0x10", "", "x"]
TOKENS = [*NUMBERS, '"x"', "true", "[]", "[1, 2]", "{}", "{a = 1}", "1979-05-27", "1_0", '"""', "[x]"]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**62, -(2**63), 1e308, float("nan"), float("inf"), -0.5, "", "x", "../x"),
    *("\x1b[31m\u202e", "x" * 5000, [], [1], [[]], ["a", 1], {}, {"a": {"b": []}}, [0.0] * 16),
]


# ---- alterations


def alter(path: Path, rng: random.Random, content: bool) -> None:
    """Alter a file."""
    if content:
        alter_checkpoint(path, rng)
        return
    data = path.read_bytes()
    if path.suffix in (".spz", ".glb") and rng.random() < 0.7:
        data = alter_inside(data, rng)
    elif path.suffix in (".json", ".jsonl") and rng.random() < 0.6:
        data = alter_json(data, rng)
    elif path.suffix in (".txt", ".toml", ".ply", "") and rng.random() < 0.5:
        data = alter_number(data, rng, TOKENS if path.suffix == ".toml" else NUMBERS)
    else:
        for _ in range(rng.choice((1, 1, 2, 5))):
            data = alter_bytes(data, rng)
    path.write_bytes(data)


def alter_inside(data: bytes, rng: random.Random) -> bytes:
    """Alter the unpacked bytes of a gzip stream, or the JSON of a binary glTF, and pack them again."""
    if data.startswith(b"\x1f\x8b"):
        return gzip.compress(alter_bytes(gzip.decompress(data), rng), 1)
    if data.startswith(b"glTF"):
        size = struct.unpack_from("<I", data, 12)[0]
        text = alter_json(data[20 : 20 + size], rng)
        text += b" " * (-len(text) % 4)
        return data[:12] + struct.pack("<I", len(text)) + data[16:20] + text + data[20 + size :]
    return alter_bytes(data, rng)


def alter_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut, insert, repeat or truncate at a random place."""
    place, kind = rng.randrange(len(data) + 1), rng.randrange(7)
    length = rng.choice((1, 2, 4, 8, 40))
    if rng.random() < 0.4:
        place = min(place, rng.randrange(1, 200))  # headers
    before, after = data[:place], data[place:]
    if kind == 0 and after:
        middle, skipped = bytes([after[0] ^ 1 << rng.randrange(8)]), 1
    elif kind == 1:
        middle, skipped = rng.randbytes(length), length
    elif kind == 2:
        number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 10**9))
        middle = struct.pack("<Q", number) if rng.random() < 0.5 else struct.pack("<I", number % 2**32)
        skipped = len(middle)
    elif kind == 3:
        middle, skipped = b"", length
    elif kind == 4:
        middle, skipped = rng.randbytes(length), 0
    elif kind == 5:
        middle, skipped = after[:length] * rng.choice((2, 50)), length
    else:
        middle, skipped = b"", len(after)
    return before + middle + after[skipped:]


def alter_number(data: bytes, rng: random.Random, others: list[str]) -> bytes:
    """Replace a number of a text, also of a header before binary data."""
    header = data.find(b"end_header") if data.startswith(b"ply") and b"ascii" not in data[:100] else -1
    found = list(re.finditer(rb"[-+]?\d[\d.e+-]*", data[:header] if header >= 0 else data))
    if not found:
        return data
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(others).encode() + data[match.end() :]


def alter_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or add a value of a JSON text."""
    try:
        content = json.loads(data.splitlines()[0] if data.count(b"\n") > 1 else data)
    except ValueError:
        return alter_bytes(data, rng)
    return json.dumps(alter_value(content, rng, VALUES)).encode()


def alter_checkpoint(path: Path, rng: random.Random) -> None:
    """Alter values of a checkpoint, and write its checksum anew."""
    content = torch.load(path, weights_only=True)
    # Not at the top of the module: torch would start threads, and forks would wait for them.
    tensors = [
        *(torch.zeros(0), torch.zeros(2, 3), torch.tensor(7), torch.tensor([True]), torch.full((3,), torch.nan)),
        *(torch.zeros(3, dtype=torch.float64), torch.zeros(5, 1, 3), torch.zeros(1, 9).expand(10**9, 9)),
    ]
    for _ in range(rng.choice((1, 1, 1, 3))):
        content = alter_value(content, rng, [*VALUES, *tensors])
    with path.open("w+b") as file:
        hashing = checkpoint_file._HashingFile(file)
        torch.save(content, hashing)  # type: ignore[arg-type]
        digest = hashing.digest.hexdigest().encode()
        file.seek(-2, os.SEEK_END)
        file.write(len(digest).to_bytes(2, "little") + digest)


def alter_value(content: Any, rng: random.Random, values: list[Any]) -> Any:
    """Alter one value at a random depth."""
    if isinstance(content, dict | list) and content and rng.random() < 0.85:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key, kind = rng.choice(keys), rng.random()
        if kind < 0.1:
            del content[key]
        elif kind < 0.15 and isinstance(content, dict):
            content[rng.choice(("x", 1, -1, "iteration"))] = content[key]
        else:
            content[key] = alter_value(content[key], rng, values)
        return content
    if isinstance(content, torch.Tensor) and content.numel() < 10**6 and rng.random() < 0.5:
        return rng.choice(
            (content.flatten()[:1], content.double(), content.to(torch.int64), content * torch.nan, content[None])
        )
    return copy.deepcopy(rng.choice(values))  # a later alteration may change it


# ---- runs


def run_command(arguments: tuple[str, ...], codes: tuple[int, ...] = (0, 2)) -> str | None:
    """Run ``gs-train`` in this process; returns a fault, or None. ``codes`` are the exit codes that are no faults."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            cli.main(list(arguments))
    except SystemExit as done:
        text = out.getvalue() + err.getvalue()
        if re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e]", text):
            return "control characters"
        last = (err.getvalue().strip().splitlines() or [""])[-1]
        code = int(done.code or 0)
        if code not in codes or (code == 2 and not last.startswith("gs-train: ") and "fault" not in text):
            return f"code {code}: {last[:120]}"
        return None
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        own = [each for each in traceback.extract_tb(error.__traceback__) if "gs_train" in each.filename][-1]
        place = f"{Path(own.filename).name}:{own.lineno} ({Path(frame.filename).name})"
        return f"traceback {type(error).__name__} in {place}: {str(error)[:80]}"
    return "no exit"


def try_input(target: Target, seed: int, number: int) -> str | None:
    """Alter a file, run the commands, and restore the folder; returns the first fault.

    An input with a negative number is not altered, and its commands must succeed.
    """
    rng = random.Random(f"{seed} {number}")
    valid = number < 0
    intact = {path: path.read_bytes() for path in target.folder.rglob("*") if path.is_file()}
    try:
        if not valid:
            alter(rng.choice(target.files), rng, target.content)
        for command in target.commands:
            fault = run_command(command, (0,) if valid else (0, 2))
            if fault is not None:
                return f"{fault} [{command[0]}]"
        return None
    finally:
        for path in sorted(target.folder.rglob("*"), reverse=True):
            if path.is_file() and path not in intact:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        for path, data in intact.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def work_through(targets: dict[str, Target], numbers: list[int], options: argparse.Namespace, pipe: int) -> None:
    """In a child: try the inputs, and write the number and name before each, and the fault after it."""
    torch.set_num_threads(1)  # on inputs this small, threads cost more time than they save
    names = [name for name, target in targets.items() for _ in range(target.share)]
    random.Random(options.seed).shuffle(names)
    resource.setrlimit(resource.RLIMIT_AS, (6 * 10**9, 6 * 10**9))
    for number in numbers:
        name = names[number % len(names)] if number >= 0 else list(targets)[number]
        os.write(pipe, f"{json.dumps([number, name])}\n".encode())
        signal.setitimer(signal.ITIMER_REAL, options.seconds)  # SIGALRM ends the process
        fault = try_input(targets[name], options.seed, number)
        signal.setitimer(signal.ITIMER_REAL, 0)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if fault is None and peak > MOST_BYTES:
            fault = f"memory {peak / 1e9:.1f} GB"
        os.write(pipe, f"{json.dumps(fault)}\n".encode())
        if peak > MOST_BYTES:
            return  # the next child shows the next peak


def try_all(
    targets: dict[str, Target], numbers: list[int], options: argparse.Namespace, on_result: Callable[..., None]
) -> None:
    """Try the inputs in children; a new one goes on after a hang or a crash."""
    while numbers:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                work_through(targets, numbers, options, writing)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(writing)
        current: list[Any] | None = None
        with os.fdopen(reading) as pipe:
            for line in pipe:
                value = json.loads(line)
                if current is None:
                    current, numbers = value, numbers[1:]
                else:
                    on_result(*current, value)
                    current = None
        _, status = os.waitpid(child, 0)
        if current is not None:
            hung = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
            on_result(*current, "hang" if hung else f"crash: wait status {status}")


def main() -> int:
    """Try the inputs and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=10_000, help="number of inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0, help="a longer input hangs; raise it on a busy machine")
    parser.add_argument("--only", type=int, help="try the input of this number only")
    options = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    seen: Counter[str] = Counter()

    def on_result(number: int, name: str, fault: str | None) -> None:
        kind = "passed" if fault is None else fault.split()[0].rstrip(":")
        counts[name, kind] += 1
        if sum(counts.values()) % 500 == 0:
            print(f"{sum(counts.values())} inputs", file=sys.stderr, flush=True)
        if fault is not None:
            seen[re.sub(r"\d+", "N", fault)] += 1
            if seen[re.sub(r"\d+", "N", fault)] == 1:
                print(f"{number} {name}: {fault}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        child = os.fork()
        if child == 0:
            # In a child, because the thread pools of a training do not survive a fork.
            (work / "targets").write_bytes(pickle.dumps(make_targets(work)))
            os._exit(0)
        os.waitpid(child, 0)
        os.environ.update(fake_pycolmap(work / "pycolmap.log"))
        targets = pickle.loads((work / "targets").read_bytes())
        # Valid inputs first: a reader that refuses its valid input would hide every fault.
        numbers = list(range(-len(targets), options.number)) if options.only is None else [options.only]
        try_all(targets, numbers, options, on_result)
    kinds = sorted({kind for _, kind in counts})
    print(f"| target | {' | '.join(kinds)} |\n|{'---|' * (len(kinds) + 1)}")
    for name in sorted({name for name, _ in counts}):
        print(f"| {name} | {' | '.join(str(counts[name, kind]) for kind in kinds)} |")
    return int(any(kind != "passed" for kind in kinds))


if __name__ == "__main__":
    sys.exit(main())
