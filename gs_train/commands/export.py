"""``gs-train export``: writes a splat file from a run, a checkpoint or another splat file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from gs_train.atomic_write import clear_leftovers
from gs_train.console import notify, show
from gs_train.errors import UserError
from gs_train.formats.clean import CleanConfig, clean
from gs_train.formats.splat_data import SplatData
from gs_train.formats.spz import parse_sh_bits
from gs_train.options import FORMATS, setting
from gs_train.run.placement import PlacementConfig, place, tilt_deg
from gs_train.scene.frame import Frame

_NOTED_TILT_DEG = 10.0


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Write the splat of a run, a checkpoint or a splat file to a new file."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_SPLAT")]
    """Run folder (its newest intact checkpoint counts), checkpoint (.pt) or splat file (.ply, .compressed.ply, .sog,
    .spz, .splat, .glb, city.json)."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.ply")]
    """File to write or replace. Its ending selects the format: .ply keeps every bit and opens in the usual viewers;
    .sog is small and keeps the view-dependent colours; .spz and .compressed.ply are larger; .splat has no
    view-dependent colours; .glb is for programs that read glTF; .html is a page that shows the splat offline in any
    browser."""
    clean: Annotated[CleanConfig, tyro.conf.arg(name="")] = field(default_factory=CleanConfig)
    """Gaussians to leave out."""
    placement: Annotated[PlacementConfig, tyro.conf.arg(name="")] = field(default_factory=PlacementConfig)
    """Placement of the splat."""
    quality: Literal["small", "normal", "high"] = setting("normal", group=FORMATS)
    """Of .sog and .html files. high keeps more of the view-dependent colours in a file up to twice as large; small
    keeps fewer in a file a quarter smaller."""
    sh_bits: str = setting("8", group=FORMATS)
    """Of .spz files: bits of the view-dependent colours, from 1 to 8, or two numbers for degree 1 and higher degrees.
    5/4 makes the smallest usual files and loses most of these colours."""
    spz_version: Literal[3, 4] = setting(3, group=FORMATS)
    """Of .spz files: 3 opens everywhere; 4 is a little smaller and needs the extra zstd."""
    spz_axes: Literal["rdf", "rub"] = setting("rdf", group=FORMATS)
    """Axes in .spz files: rdf (right, down, forward, as in a .ply) fits most viewers, rub (right, up, back) the text of
    the format. It holds for OUT, or for the file to read if OUT is not a .spz file."""

    def __post_init__(self) -> None:
        """Raise UserError, naming the flag, for a value outside its range."""
        parse_sh_bits(self.sh_bits)

    def run(self) -> int:
        """Write the file."""
        from gs_train.formats.registry import is_splat_file, splat_writer
        from gs_train.run.open import open_splat
        from gs_train.run.splat_frame import write_offset
        from gs_train.viewer.page_of import page_of

        given = self._format_options()
        is_spz = self.target.name.lower().endswith(".spz")
        reading = {} if is_spz or "spz_axes" not in given else {"spz_axes": given.pop("spz_axes")}
        write = splat_writer(self.target, notify, **given)
        if reading and not is_splat_file(self.source):
            raise UserError("--spz-axes is an option of .spz files, and there is none: leave out --spz-axes.")
        if self._is_plain() and is_splat_file(self.source):
            return self._copy(reading)
        opened = open_splat(self.source, notify, **reading)
        frame = opened.frame.of_files
        data = self._cleaned(self._finite(opened.splat()), frame)
        placed = place(data, frame, opened, self.placement)
        for note in placed.notes:
            notify(note)
        if self.target.name.lower().endswith(".html"):
            page = page_of(opened, placed.rotation, self.placement.scale, self.placement.shift())
            write = splat_writer(self.target, notify, **given, page=page)
        clear_leftovers(self.target.parent, self.target.name)
        offset = write_offset(self.target, placed.frame)
        write(self.target, placed.data)
        if offset is not None:
            notify(offset)
        self._show_written(len(placed.data))
        background = opened.background_name()
        if background is not None:
            show(f"Show it over the background of its training: {background}.")
        tilt = tilt_deg(opened)
        # A .ply fits cameras.json, and a page turns its view upright.
        turnable = self.target.suffix.lower() not in (".ply", ".html")
        if self.placement == PlacementConfig() and turnable and tilt > _NOTED_TILT_DEG:
            show(f"Viewers show the scene tilted by {tilt:.0f} degrees: export it with --up auto to turn it upright.")
        return 0

    def _format_options(self) -> dict[str, Any]:
        """The options of single formats that differ from their defaults."""
        names = ("quality", "sh_bits", "spz_version", "spz_axes")
        defaults = {entry.name: entry.default for entry in fields(self) if entry.name in names}
        return {name: getattr(self, name) for name in names if getattr(self, name) != defaults[name]}

    def _is_plain(self) -> bool:
        """Whether the target can be written in pieces, without all Gaussians in memory."""
        from gs_train.formats.registry import stream_writer

        unchanged = (self.clean, self.placement) == (CleanConfig(), PlacementConfig())
        return unchanged and stream_writer(self.target) is not None

    def _copy(self, reading: dict[str, Any]) -> int:
        """Write the finite Gaussians of a splat file to another one in pieces."""
        from gs_train.formats.registry import stream_writer
        from gs_train.run.splat_frame import stream_splat, write_offset

        stream, frame = stream_splat(self.source, notify, **reading)
        finite = sum(int(piece.is_finite().sum()) for piece in stream.pieces())
        if finite < stream.count:
            self._tell_left_out(stream.count - finite, stream.count)
            stream = stream.mapped(lambda piece: piece.keep(piece.is_finite()), finite)
        write = stream_writer(self.target)
        assert write is not None
        clear_leftovers(self.target.parent, self.target.name)
        offset = write_offset(self.target, frame)
        write(self.target, stream)
        if offset is not None:
            notify(offset)
        self._show_written(stream.count)
        return 0

    def _show_written(self, count: int) -> None:
        size = self.target.stat().st_size / 2**20
        show(f"Wrote {count:,} Gaussians to {self.target} ({size:.1f} MiB).")

    def _tell_left_out(self, count: int, total: int) -> None:
        """Tell about Gaussians with NaN or infinite values; raises UserError if no others are left."""
        if count == total:
            raise UserError(f"all Gaussians of {self.source} have NaN or infinite values: export another splat.")
        plural = "" if count == 1 else "s"
        notify(f"Left out {count:,} Gaussian{plural} of {self.source} with NaN or infinite values.")

    def _finite(self, data: SplatData) -> SplatData:
        """The Gaussians without NaN and infinite values: viewers end, or show nothing, with these rows."""
        finite = data.is_finite()
        if finite.all():
            return data
        self._tell_left_out(int((~finite).sum()), len(data))
        return data.keep(finite)

    def _cleaned(self, data: SplatData, frame: Frame) -> SplatData:
        """The Gaussians that the flags keep."""
        kept, reasons = clean(data, self.clean, frame.offset)
        if not reasons:
            return data
        counts = ", ".join(f"{count:,} {reason}" for count, reason in reasons)
        if len(kept) == 0 < len(data):
            raise UserError(f"no Gaussians of {self.source} are left ({counts}): give wider limits.")
        notify(f"Left out {len(data) - len(kept):,} of {len(data):,} Gaussians: {counts}.")
        return kept
