"""The command line: options in, calls of `qcompiler.compiler`, exit codes out.

Options are in `options.py`, what they call in `commands.py`. Progress and errors go to stderr; stdout has the result,
which is one JSON document with --json.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

from qcompiler.cli.options import parser
from qcompiler.cli.view import opened
from qcompiler.errors import EngineError, InternalError, QCompilerError
from qcompiler.support.interrupts import Terminated, terminated


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
        options = _parser().parse_args(argv)
        with terminated(), opened(options) as view:
            return int(options.run(options, view) or 0)
    except Terminated as error:
        _say(f"terminated: {str(error) or 'nothing was written'}")
        return 143
    except KeyboardInterrupt as error:
        _say(f"interrupted: {str(error) or 'nothing was written'}")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone; so is the flush at exit
        return 0
    except QCompilerError as error:
        _explain(error, debug)
        return error.exit_code
    except Exception as error:
        _explain(error, debug)
        return 1


def _parser() -> argparse.ArgumentParser:
    return parser()


def _explain(error: Exception, debug: bool) -> None:
    """One paragraph on stderr; the traceback and what the engine library said only with --debug."""
    if debug:
        _say("".join(traceback.format_exception(error)).rstrip())
        if isinstance(error, EngineError) and error.said:
            _say(f"the engine library said: {error.said}")
    kind = "error"
    text = " ".join(str(error).split())
    if not isinstance(error, QCompilerError):
        text = f"{type(error).__name__}: {text}. This is a defect of qcompiler."
    if not isinstance(error, QCompilerError) or isinstance(error, InternalError):
        kind = "internal error"
    if kind != "error" and "report it" not in text:  # the messages of passes say so themselves
        again = "" if debug else " Run again with --debug for the traceback."
        text = f"{text}{again} Please report it with the model, or its graph if the weights are secret."
    _say(f"{kind}: {text}")


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
