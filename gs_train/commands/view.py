"""``gs-train view``: shows a splat in the browser."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from gs_train.console import end_at_once, flush_stdout, notify, show
from gs_train.errors import UserError
from gs_train.options import DEVICES, check_device
from gs_train.viewer.hosting import check_port, ssh_hint

if TYPE_CHECKING:
    from gs_train.run.open import OpenedSplat


@dataclass(frozen=True, kw_only=True)
class ViewCommand:
    """Show a splat in the browser until Ctrl-C."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_SPLAT")]
    """Run folder (its newest intact checkpoint counts), checkpoint (.pt) or splat file (.ply, .compressed.ply, .sog,
    .spz, .splat, .glb, city.json)."""
    port: int = 8080
    """Port of the page on this machine; the next free one is used if it is taken."""
    render: Literal["browser", "server"] = "browser"
    """browser draws with WebGL2 on the machine of the browser; server renders on this machine, for browsers without
    WebGL2."""
    device: Annotated[str | None, tyro.conf.arg(metavar=DEVICES)] = None
    """Device of --render server; the device of the training if not given."""
    browser: bool = True
    """Open the page in the browser. --no-browser prints its address only."""

    def __post_init__(self) -> None:
        """Raise UserError, naming the flag, for a value outside its range."""
        check_port("--port", self.port)
        if self.device is not None:
            check_device(self.device)
            if self.render != "server":
                raise UserError("--device is for --render server: add it, or leave --device out.")

    def run(self) -> int:
        """Serve the page."""
        from gs_train.run.open import open_splat
        from gs_train.viewer.serve import PageServer

        opened = open_splat(self.source, notify)
        page, picture = self._page(opened)
        with PageServer(page, self.port, notify, picture=picture) as server:
            show(f"Page: {server.address} (Ctrl-C ends)")
            if hint := ssh_hint(server.server_port):
                show(hint)
            elif self.browser and not webbrowser.open(server.address):
                show("No browser was found: open the address yourself.")
            flush_stdout()
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                show("")
        return 0

    def _page(self, opened: OpenedSplat) -> tuple[str, Callable[[str], bytes] | None]:
        """The page, and what answers its queries."""
        from gs_train.formats.html import page_html
        from gs_train.viewer.page_of import page_and_splat, page_of_splat

        if self.render == "browser":
            return page_of_splat(opened, notify), None
        from gs_train.viewer.remote import picture_maker

        page, data = page_and_splat(opened, notify)
        with end_at_once():
            selection = opened.select_rasterizer(self.device, notify)
        return page_html(page, None), picture_maker(opened, data, selection)
