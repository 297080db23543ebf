"""Where a command says what it has to say: progress and tables for people, one JSON document for programs."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from qcompiler.support.progress import Progress


class Screen:
    """Where a command puts what it has to say."""

    def __init__(self, options: argparse.Namespace, result: int) -> None:
        self.json: bool = options.json
        self.quiet: bool = options.quiet
        self._result = result

    @property
    def progress(self) -> Progress:
        """Bars on a terminal, lines elsewhere, nothing with --quiet."""
        from qcompiler.support.progress import Lines, Terminal, silent

        if self.quiet:
            return silent
        return Terminal(self._console(sys.stderr)) if sys.stderr.isatty() else Lines(sys.stderr)

    def people(self, *parts: Any) -> None:
        """Tables and text: on stdout, or on stderr where stdout belongs to --json."""
        if self.quiet and self.json:
            return
        console = self._console(sys.stderr if self.json else sys.stdout)
        for part in parts:
            console.print(part, highlight=False)

    def result(self, data: Any) -> None:
        """The JSON document of --json."""
        from qcompiler.support.as_json import plain

        if not self.json:
            return
        text = json.dumps(plain(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with os.fdopen(os.dup(self._result), "w", encoding="utf8") as stream:
            stream.write(text)

    def _console(self, stream: Any) -> Console:
        from rich.console import Console

        return Console(file=stream, width=None if stream.isatty() else 120)


@contextlib.contextmanager
def opened(options: argparse.Namespace) -> Iterator[Screen]:
    """Keeps libraries quiet, and with --json keeps file descriptor 1 for the document alone."""
    if not options.debug:
        logging.disable(logging.CRITICAL)
    kept = os.dup(1)
    try:
        with warnings.catch_warnings():
            if not options.debug:
                warnings.simplefilter("ignore")
            if options.json:
                sys.stdout.flush()
                os.dup2(2, 1)  # also for libraries that write there from C++
            yield Screen(options, kept)
    finally:
        sys.stdout.flush()
        if options.json:
            os.dup2(kept, 1)
        os.close(kept)
        logging.disable(logging.NOTSET)
