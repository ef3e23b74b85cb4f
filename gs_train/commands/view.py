"""``gs-train view``: shows a splat in the browser."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gs_train.console import notify, show
from gs_train.viewer.hosting import check_port, ssh_hint


@dataclass(frozen=True, kw_only=True)
class ViewCommand:
    """Show a splat in the browser until Ctrl-C."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_SPLAT")]
    """Run folder (its newest intact checkpoint counts), checkpoint (.pt) or splat file (.ply, .compressed.ply, .sog,
    .spz, .splat, .glb)."""
    port: int = 8080
    """Port of the page on this machine; the next free one is used if it is taken."""
    browser: bool = True
    """Open the page in the browser. --no-browser prints its address only."""

    def __post_init__(self) -> None:
        """Raise UserError, naming the flag, for a value outside its range."""
        check_port("--port", self.port)

    def run(self) -> int:
        """Serve the page."""
        from gs_train.run.open import open_splat
        from gs_train.viewer.page_of import page_of_splat
        from gs_train.viewer.serve import PageServer

        with PageServer(page_of_splat(open_splat(self.source, notify), notify), self.port, notify) as server:
            show(f"Page: {server.address} (Ctrl-C ends)")
            if hint := ssh_hint(server.server_port):
                show(hint)
            elif self.browser and not webbrowser.open(server.address):
                show("No browser was found: open the address yourself.")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                show("")
        return 0
