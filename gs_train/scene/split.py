"""Splits the views of a scene into training and test views: by a list of names, by the scene's own split, or by every
Nth name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from gs_train.errors import UserError, first_few
from gs_train.scene.types import View

FEWEST_TRAINING_VIEWS = 2
TEST_LIST, TRAIN_LIST = "test_list.txt", "train_list.txt"
"""Lists of names inside a scene folder; a run keeps its list under the first name."""


class TooFewViewsError(UserError):
    """Too few photos are left to train on. After other faults it is only their consequence."""


def read_test_names(
    views: Sequence[View], test_list: str, folder: Path, own: frozenset[str] | None
) -> frozenset[str] | None:
    """Names of the test views, from the first source that there is; None without one.

    Args:
        views: all views.
        test_list: a file of names, or empty.
        folder: the scene's folder, which may hold ``TEST_LIST`` or ``TRAIN_LIST``.
        own: the split of the scene's format; None without one.

    Raises:
        UserError: a list cannot be read, or names no view of the scene.
    """
    if test_list:
        return _named(Path(test_list), views)
    if (folder / TEST_LIST).is_file():
        return _named(folder / TEST_LIST, views)
    if (folder / TRAIN_LIST).is_file():
        return frozenset(view.name for view in views) - _named(folder / TRAIN_LIST, views)
    return own


def _named(path: Path, views: Sequence[View]) -> frozenset[str]:
    """Names of the views that a list names: by the whole name, by its last part, or without the file ending."""
    try:
        lines = [line.strip().replace("\\", "/") for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(
            f"{path} cannot be read ({reason}): give a text file with one image name in each line."
        ) from None
    spelled: dict[str, list[str]] = {}
    for view in views:
        name = PurePosixPath(view.name)
        for key in {view.name, name.name, name.with_suffix("").as_posix(), name.stem}:
            spelled.setdefault(key, []).append(view.name)
    exact = {view.name for view in views}
    found, unknown = set(), []
    for line in lines:
        if not line or line.startswith("#"):
            continue
        matches = [line] if line in exact else spelled.get(line, [])
        if len(matches) == 1:
            found.add(matches[0])
        else:
            unknown.append(line)
    if unknown:
        message = f"{path} names {len(unknown)} images that are not in the scene, or not clearly ({first_few(unknown)})"
        raise UserError(f"{message}: write the names as the scene does, for example {views[0].name if views else ''}.")
    return frozenset(found)


def split_views(
    views: tuple[View, ...], test_every: int, test_names: frozenset[str] | None, path: Path, *, hidden: int
) -> tuple[tuple[View, ...], tuple[View, ...]]:
    """Training and test views. The test views are ``test_names``, or else every ``test_every``-th by sorted name.

    Args:
        views: sorted by name.
        test_every: N selects the views 0, N, 2N ...; 0 selects none, even if there are ``test_names``.
        test_names: names of the test views; None without a split.
        path: the scene, for messages.
        hidden: number of views left out before, because a mask hides all of them.

    Raises:
        TooFewViewsError: fewer than two training views are left.
    """
    if test_names is None or test_every == 0:
        test_names = frozenset(view.name for view in views[::test_every]) if test_every else frozenset()
        split = f"--test-every {test_every}"
    else:
        split = "its own split"
    test = tuple(view for view in views if view.name in test_names)
    train = tuple(view for view in views if view.name not in test_names)
    if len(train) < FEWEST_TRAINING_VIEWS:
        left = f"{path} leaves {len(train)} of its {len(views) + hidden} views to train on with {split}"
        masks = f" and {hidden} masks that hide all of their photos" if hidden else ""
        remedies = ["correct the masks", "swap black and white with --invert-masks"] if hidden else []
        remedies.append("add photos from other places and run the reconstruction again")
        if len(views) >= FEWEST_TRAINING_VIEWS:
            remedies.append("train on all photos with --test-every 0")
        remedy = f"{', '.join(remedies[:-1])}, or {remedies[-1]}" if len(remedies) > 1 else remedies[0]
        raise TooFewViewsError(f"{left}{masks}, but training needs at least {FEWEST_TRAINING_VIEWS}: {remedy}.")
    return train, test
