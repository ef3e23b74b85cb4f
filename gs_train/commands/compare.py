"""``gs-train compare``: writes a page that compares runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gs_train.console import show
from gs_train.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Compare runs of one scene on one page: curves, results, settings, and the same views side by side."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN ...")]
    """Folders of two or more runs, each measured by gs-train eval."""
    out: Annotated[Path, tyro.conf.arg(metavar="PAGE.html")] = Path("compare.html")
    """Page to write. It is one file that needs no network."""
    all_views: tyro.conf.FlagCreatePairsOff[bool] = False
    """Put the pictures of all views into the page. Without it, a page of more than 60 views has the 20 whose PSNR
    differs most."""

    def __post_init__(self) -> None:
        """Raise UserError, naming the flag, for a target that is no page."""
        if self.out.suffix.lower() not in (".html", ".htm") or self.out.is_dir():
            raise UserError(f"--out {self.out} is no page: name a file with the ending .html.")

    def run(self) -> int:
        """Write the page."""
        from gs_train.evaluate.compare import write_comparison

        write_comparison(self.runs, self.out, all_views=self.all_views)
        show(f"Comparison: {self.out}")
        return 0
