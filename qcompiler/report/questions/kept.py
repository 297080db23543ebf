"""What compilations keep, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from qcompiler.report.figures import size

if TYPE_CHECKING:
    from rich.console import RenderableType


def terminal(found: Mapping[str, Any] | None) -> Iterator[RenderableType]:
    """Folder and size, then a row for each stage.

    Args:
        found: as `qcompiler.compiler.kept.shown.shown` returns it; None where nothing is kept.
    """
    if found is None:
        yield Text("nothing is kept: QCOMPILER_CACHE is off")
        return
    yield Text(f"{found['folder']}: {size(found['bytes'])} of at most {size(found['limit'])}")
    if not found["stages"]:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, side in (("stage", "left"), ("results", "right"), ("size", "right"), ("last used", "left")):
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
    for row in found["stages"]:
        used = row["used"].replace("T", " ").replace("+00:00", " UTC")
        table.add_row(row["name"], str(row["results"]), size(row["bytes"]), used)
    yield table


def cleared(removed: int) -> Iterator[RenderableType]:
    """What is gone."""
    yield Text(f"removed {size(removed)}" if removed else "nothing was kept")
