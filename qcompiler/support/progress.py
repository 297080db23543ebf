"""What a long run tells while it runs: stages that have a name, a length and a position.

Library code takes a `Progress` and never imports a terminal library; `silent` is the default everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, TYPE_CHECKING, Protocol

from qcompiler.support.outlook import Outlook, rounded

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn, Task, TaskID


class ShownStage(Protocol):
    """A stage that is running."""

    def advance(self, steps: float = 1) -> None:
        """So many steps more are done."""

    def total(self, steps: float | None) -> None:
        """How long it is was found out later; None if nobody knows."""

    def note(self, text: str) -> None:
        """What it is doing now, a few words."""


class Progress(Protocol):
    """Where stages are announced."""

    def stage(self, name: str, total: float | None = None) -> AbstractContextManager[ShownStage]:
        """Begins a stage that ends with the `with` block; `total` None if its length is not known."""

    def expect(self, text: str, outlook: Outlook) -> None:
        """What all of it is thought to take, as a few words and as something that knows what is left."""

    def reuse(self, name: str, seconds: float) -> None:
        """A stage is not run: what an earlier run made in so many seconds is still true."""

    def warn(self, text: str) -> None:
        """One sentence that the user should see."""


class _Nothing:
    def advance(self, steps: float = 1) -> None: ...

    def total(self, steps: float | None) -> None: ...

    def note(self, text: str) -> None: ...


class Silent:
    """Says nothing."""

    @contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[ShownStage]:
        """See `Progress`."""
        yield _Nothing()

    def expect(self, text: str, outlook: Outlook) -> None:
        """See `Progress`."""

    def reuse(self, name: str, seconds: float) -> None:
        """See `Progress`."""

    def warn(self, text: str) -> None:
        """See `Progress`."""


silent = Silent()


class Lines:
    """One line for each stage when it is done, for logs and pipes."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    @contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[ShownStage]:
        """See `Progress`."""
        started = time.perf_counter()
        yield _Nothing()
        self._say(f"{name}: {time.perf_counter() - started:.1f} s")

    def expect(self, text: str, outlook: Outlook) -> None:
        """See `Progress`."""
        self._say(f"estimate: {text}")

    def reuse(self, name: str, seconds: float) -> None:
        """See `Progress`."""
        self._say(f"{name}: kept from an earlier run ({seconds:.1f} s)")

    def warn(self, text: str) -> None:
        """See `Progress`."""
        self._say(f"warning: {text}")

    def _say(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class Terminal:
    """Bars that move, and a line with a tick for each finished stage; beside the bar, what is left of all of it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._outlook: Outlook | None = None

    @contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[ShownStage]:
        """See `Progress`."""
        from rich.markup import escape
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("[dim]{task.fields[note]}"),
            TimeElapsedColumn(),
            *([] if self._outlook is None else [_left(self._outlook)]),
        )
        started = time.perf_counter()
        with Bars(*columns, console=self._console, transient=True) as bars:
            yield _Bar(bars, bars.add_task(escape(name), total=total, note=""))
        seconds = time.perf_counter() - started
        self._console.print(f"[green]✓[/] {escape(name)} [dim]{seconds:.1f} s[/]", highlight=False)

    def expect(self, text: str, outlook: Outlook) -> None:
        """See `Progress`."""
        from rich.markup import escape

        self._outlook = outlook
        self._console.print(f"[dim]estimate: {escape(text)}[/]", highlight=False)

    def reuse(self, name: str, seconds: float) -> None:
        """See `Progress`."""
        from rich.markup import escape

        told = f"[green]✓[/] {escape(name)} [dim]kept from an earlier run ({seconds:.1f} s)[/]"
        self._console.print(told, highlight=False)

    def warn(self, text: str) -> None:
        """See `Progress`."""
        from rich.markup import escape

        self._console.print(f"[yellow]![/] {escape(text)}", highlight=False)


def _left(outlook: Outlook) -> ProgressColumn:
    """The column that tells what is left of all stages, drawn anew as long as the bar is there."""
    from rich.progress import ProgressColumn
    from rich.text import Text

    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"in all {rounded(outlook.left)} left", style="dim")

    return Left()


class _Bar:
    def __init__(self, bars: Bars, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, steps: float = 1) -> None:
        self._bars.advance(self._task, steps)

    def total(self, steps: float | None) -> None:
        self._bars.update(self._task, total=steps)

    def note(self, text: str) -> None:
        from rich.markup import escape

        self._bars.update(self._task, note=escape(text))
