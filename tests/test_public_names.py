"""``from gs_train import ...`` loads torch only when a name needs it, and ``train`` is the function in every import
order."""

from __future__ import annotations

import subprocess
import sys

from command_line import environment

EARLY = """
import sys
import gs_train
assert "torch" not in sys.modules
assert gs_train.TrainConfig is not None
assert "torch" not in sys.modules
from gs_train import GaussianModel, TrainConfig, load_scene, train
assert "torch" in sys.modules
assert set(gs_train.__all__) <= set(dir(gs_train)) | set(gs_train._MODULES)
assert all(getattr(gs_train, name) is not None for name in gs_train.__all__)
"""

ORDERS = """
import inspect, itertools, sys
import torch, numba  # they stay, the project's own modules are imported anew for every order
statements = [
    "import gs_train.training.loop",
    "import gs_train.training.state",
    "import gs_train.training",
    "import gs_train.commands.train",
    "from gs_train import TrainConfig, load_scene",
    "from gs_train import train",
]
orders = [*itertools.permutations(statements, 2), statements[::-1]]
for order in orders:
    for name in [name for name in sys.modules if name.partition(".")[0] == "gs_train"]:
        del sys.modules[name]
    space = {}
    for statement in order:
        exec(statement, space)
    exec("from gs_train import train; import gs_train, gs_train.training.loop", space)
    assert inspect.isfunction(space["train"]), order
    assert space["train"] is space["gs_train"].train is space["gs_train"].training.loop.train, order
print(len(orders))
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-c", program]
    return subprocess.run(call, env=environment(), capture_output=True, text=True, timeout=300, check=False)


def test_importing_the_package_imports_nothing_heavy() -> None:
    done = run(EARLY)
    assert done.returncode == 0, done.stderr


def test_train_is_the_function_in_every_order_of_imports() -> None:
    done = run(ORDERS)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 30 + 1


def test_modules_of_training_import_alone() -> None:
    done = run(
        "import gs_train.training.state as state; assert state.TrainState; import gs_train; gs_train.train.__call__"
    )
    assert done.returncode == 0, done.stderr
