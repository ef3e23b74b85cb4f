"""``gs-train export``: writes a splat file from a run, a checkpoint or another splat file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gs_train.console import notify, show
from gs_train.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Write the splat of a run, a checkpoint or a splat file to a new file."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_SPLAT")]
    """Run folder (its newest intact checkpoint counts), checkpoint (.pt) or splat file (.ply)."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.ply")]
    """File to write or replace. Its ending selects the format: .ply opens in the usual viewers."""

    def run(self) -> int:
        """Write the file."""
        from gs_train.formats.registry import splat_writer
        from gs_train.run.open import open_splat
        from gs_train.run.splat_frame import write_offset

        write = splat_writer(self.target)
        opened = open_splat(self.source, notify)
        data = opened.splat()
        finite = data.is_finite()
        if not finite.all():
            if not finite.any():
                raise UserError(f"all Gaussians of {self.source} have NaN or infinite values: export another splat.")
            # Viewers end, or show nothing, on such rows.
            count = int((~finite).sum())
            plural = "" if count == 1 else "s"
            notify(f"Left out {count:,} Gaussian{plural} of {self.source} with NaN or infinite values.")
            data = data.keep(finite)
        offset = write_offset(self.target, opened.frame.of_files)
        write(self.target, data)
        if offset is not None:
            notify(offset)
        show(f"Wrote {len(data):,} Gaussians to {self.target} ({self.target.stat().st_size / 2**20:.1f} MiB).")
        background = opened.background_name()
        if background is not None:
            show(f"Show it over the background of its training: {background}.")
        return 0
