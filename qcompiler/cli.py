"""The command line: options in, calls of `qcompiler.compiler`, exit codes out; no logic.

Nothing heavy is imported before a command runs, so that --help is there at once. Progress and errors go to stderr;
stdout has the result, which is one JSON document with --json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from qcompiler._version import __version__
from qcompiler.errors import InternalError, QCompilerError, UsageError
from qcompiler.recipe import HIGH_PRECISIONS, PRECISIONS, PRESETS, WEIGHT_GRANULARITIES, Recipe, parse_shapes, preset
from qcompiler.suggest import did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

    from qcompiler.progress import Progress

EXITS = (
    "exit codes: 0 done, 1 a defect of qcompiler, 2 usage, 3 the model, 4 the data, 5 an accuracy gate, "
    "6 the engine or target, 130 interrupted"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
        options = _parser().parse_args(argv)
        with _view(options) as view:
            return int(options.run(options, view) or 0)
    except KeyboardInterrupt:
        _say("interrupted: nothing was written")
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


class View:
    """Where a command puts what it has to say."""

    def __init__(self, options: argparse.Namespace, result: int) -> None:
        self.json: bool = options.json
        self.quiet: bool = options.quiet
        self._result = result

    @property
    def progress(self) -> Progress:
        """Bars on a terminal, lines elsewhere, nothing with --quiet."""
        from qcompiler.progress import Lines, Terminal, silent

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
        from qcompiler.plain import plain

        if not self.json:
            return
        text = json.dumps(plain(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with os.fdopen(os.dup(self._result), "w", encoding="utf8") as stream:
            stream.write(text)

    def _console(self, stream: Any) -> Console:
        from rich.console import Console

        return Console(file=stream, width=None if stream.isatty() else 120)


@contextlib.contextmanager
def _view(options: argparse.Namespace) -> Iterator[View]:
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
            yield View(options, kept)
    finally:
        sys.stdout.flush()
        if options.json:
            os.dup2(kept, 1)
        os.close(kept)
        logging.disable(logging.NOTSET)


def _compile(options: argparse.Namespace, view: View) -> None:
    from qcompiler import compiler
    from qcompiler.report import terminal

    output = options.output or f"{Path(options.source).stem}.engine"
    result = compiler.compile(
        options.source, data=options.data, recipe=_recipe(options), output=output, progress=view.progress
    )
    view.people(*terminal.summary(result.manifest), *terminal.artefacts(result))
    view.result(result.manifest)


def _quantize(options: argparse.Namespace, view: View) -> None:
    from qcompiler import compiler
    from qcompiler.report import terminal

    output = options.output or f"{Path(options.source).stem}.qdq.onnx"
    result = compiler.quantize(
        options.source, data=options.data, recipe=_recipe(options), output=output, progress=view.progress
    )
    view.people(*terminal.summary(result.manifest), *terminal.artefacts(result))
    view.result(result.manifest)


def _build(options: argparse.Namespace, view: View) -> None:
    from qcompiler import compiler
    from qcompiler.report import terminal

    output = options.output or f"{Path(options.model).name.removesuffix('.onnx').removesuffix('.qdq')}.engine"
    result = compiler.build(
        options.model, output=output, data=options.data, recipe=_recipe(options), progress=view.progress
    )
    view.people(*terminal.summary(result.manifest), *terminal.artefacts(result))
    view.result(result.manifest)


def _verify(options: argparse.Namespace, view: View) -> None:
    from qcompiler import compiler
    from qcompiler.report import terminal
    from qcompiler.verification import gate

    recipe = _recipe(options)
    verification = compiler.verify(
        options.float, options.quantized, data=options.data, recipe=recipe, progress=view.progress
    )
    view.people(*terminal.verification(verification.to_json()))
    view.result(verification.to_json())
    gate(verification, recipe)


def _inspect(options: argparse.Namespace, view: View) -> None:
    from qcompiler.inspection import inspect
    from qcompiler.report import terminal

    found = inspect(options.model, data=options.data, recipe=_recipe(options), progress=view.progress).to_json()
    view.people(*terminal.inspection(found, everything=options.all))
    view.result(found)


def _passes(options: argparse.Namespace, view: View) -> None:
    from qcompiler import spec
    from qcompiler.report import terminal

    known = spec.available()
    if options.name and options.name not in known:
        raise UsageError(f"there is no pass '{options.name}': {did_you_mean(options.name, known)}")
    chosen = {options.name: known[options.name]} if options.name else known
    rows = [spec.describe(one) for one in chosen.values()]
    if not view.json:
        view.people(*terminal.passes(rows))
    view.result(rows)


def _recipe_show(options: argparse.Namespace, view: View) -> None:
    recipe = _recipe_source(options.recipe)
    if not view.json:
        print(recipe.to_toml(), end="")
    view.result(recipe.to_dict())


def _recipe_list(options: argparse.Namespace, view: View) -> None:
    if not view.json:
        print("\n".join(PRESETS))
    view.result({name: preset(name).to_dict() for name in PRESETS})


def _recipe_check(options: argparse.Namespace, view: View) -> None:
    recipe = _recipe_source(options.recipe)
    view.people(f"{options.recipe} is a valid recipe: {recipe.precision} for {recipe.target}")
    view.result(recipe.to_dict())


def _recipe_source(text: str) -> Recipe:
    """A preset's name, a TOML file, or a manifest whose recipe is used again."""
    if text in PRESETS and not Path(text).exists():
        return preset(text)
    if text.endswith(".json"):
        from qcompiler.manifest import replay

        return replay(text)
    if not Path(text).exists() and not text.endswith(".toml"):
        raise UsageError(f"there is no recipe '{text}': neither a file nor a preset; {did_you_mean(text, PRESETS)}")
    return Recipe.from_toml(Path(text))


def _recipe(options: argparse.Namespace) -> Recipe:
    """The recipe of --recipe, or the preset of the precision, with the options that were given put over it."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    base = _recipe_source(given["recipe"]) if "recipe" in given else preset(given.get("precision", "int8"))
    changes = {name: given[name] for name in base.to_dict() if name in given}
    if "shapes" in changes:
        changes["shapes"] = parse_shapes(";".join(changes["shapes"]))
    if "keep" in changes:
        changes["keep"] = (*base.keep, *changes["keep"])
    return base.replace(**changes)


class _Parser(argparse.ArgumentParser):
    """argparse whose mistakes are `UsageError`s that know the closest command or option."""

    def error(self, message: str) -> NoReturn:
        ended = message if message.endswith("?") else f"{message}."
        raise UsageError(f"{ended} '{self.prog} --help' lists what there is.")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = getattr(found, "parser", self)
            flags = [flag for action in parser._actions for flag in action.option_strings]
            hint = did_you_mean(unknown[0].partition("=")[0], flags) if unknown[0].startswith("-") else ""
            close = f" ({hint})" if hint.startswith("did you mean") else ""
            parser.error(f"unknown option or argument '{unknown[0]}'{close}")
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or "command"
            raise argparse.ArgumentError(
                None, f"there is no {name} '{value}': {did_you_mean(str(value), action.choices)}"
            )


def _parser() -> _Parser:
    parser = _Parser(
        prog="qcompiler",
        description="Compiles float ONNX models into quantized, verified TensorRT engines.",
        epilog=EXITS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"qcompiler {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    compile_ = _command(
        commands,
        "compile",
        _compile,
        "a float model into a quantized engine, with manifest and report",
        "qcompiler compile model.onnx --data calibration.npz -o out/model.engine",
    )
    _positional(compile_, "source", "SOURCE", "the float ONNX model")
    _data(compile_, "calibration data")
    _output(compile_, "the engine; .qdq.onnx, .manifest.json and .report.html go beside it (default: SOURCE's name)")
    _quantization(compile_)
    _engine(compile_)
    _gates(compile_)

    quantize = _command(
        commands,
        "quantize",
        _quantize,
        "the same, but stop before the engine",
        "qcompiler quantize model.onnx --data calibration.npz -o model.qdq.onnx",
    )
    _positional(quantize, "source", "SOURCE", "the float ONNX model")
    _data(quantize, "calibration data")
    _output(quantize, "the quantized ONNX model; manifest and report go beside it (default: SOURCE's name)")
    _quantization(quantize)
    _engine(quantize)
    _gates(quantize)

    build = _command(
        commands,
        "build",
        _build,
        "an engine from a model that is quantized already",
        "qcompiler build model.qdq.onnx --shapes x=1x3x224x224,8x3x224x224,32x3x224x224 -o model.engine",
    )
    _positional(build, "model", "MODEL", "the quantized ONNX model")
    _data(build, "data whose shapes make the optimization profile")
    _output(build, "the engine (default: MODEL's name)")
    _recipe_file(build)
    _engine(build)

    verify = _command(
        commands,
        "verify",
        _verify,
        "compare a quantized model with its float model",
        "qcompiler verify model.onnx model.qdq.onnx --data heldout.npz --min-sqnr 20",
    )
    _positional(verify, "float", "FLOAT", "the float ONNX model")
    _positional(verify, "quantized", "QUANTIZED", "the quantized ONNX model, or an engine where it can run")
    _data(verify, "data to compare on", required=True)
    _recipe_file(verify)
    verify.add_argument(
        "--samples", dest="verify_samples", type=int, metavar="N", help="compare on so many feeds (default: 16)"
    )
    _gates(verify, samples=False)

    inspect = _command(
        commands,
        "inspect",
        _inspect,
        "what is in a model, what can be quantized, where it spikes",
        "qcompiler inspect model.onnx --data calibration.npz",
    )
    _positional(inspect, "model", "MODEL", "an ONNX model")
    _data(inspect, "data to measure ranges on; without it only the graph is looked at")
    _recipe_file(inspect)
    inspect.add_argument("--target", metavar="T", help=_help("target"))
    inspect.add_argument("--samples", type=int, metavar="N", help=_help("samples"))
    inspect.add_argument("--all", action="store_true", help="list every node, also of large models")

    passes = _command(commands, "passes", _passes, "the graph rewrites and their options", "qcompiler passes")
    passes.add_argument("name", metavar="NAME", nargs="?", help="only this one")

    recipe = commands.add_parser("recipe", help="show, list or check recipes", description="Recipes are TOML files.")
    kinds = recipe.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    show = _command(
        kinds, "show", _recipe_show, "print a complete recipe as TOML", "qcompiler recipe show int8 > my.toml"
    )
    check = _command(kinds, "check", _recipe_check, "is this file a valid recipe?", "qcompiler recipe check my.toml")
    for one in (show, check):
        _positional(one, "recipe", "RECIPE", f"a preset ({', '.join(PRESETS)}), a TOML file or a manifest")
    _command(kinds, "list", _recipe_list, "the names of the presets", "qcompiler recipe list")
    return parser


def _command(commands: Any, name: str, run: Any, what: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=f"example:\n  {example}\n\n{textwrap.fill(EXITS, 96)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, parser=parser)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="the result as JSON on stdout, everything else on stderr")
    group.add_argument("--quiet", action="store_true", help="no progress")
    group.add_argument("--debug", action="store_true", help="show tracebacks and what libraries say")
    return parser


def _positional(parser: argparse.ArgumentParser, name: str, metavar: str, what: str) -> None:
    parser.add_argument(name, metavar=metavar, help=what)


def _output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help=what)


def _data(parser: argparse.ArgumentParser, what: str, *, required: bool = False) -> None:
    text = f"{what}: an .npz with samples on axis 0, a folder of .npz, file.py:function, or random (smoke tests only)"
    parser.add_argument("--data", metavar="D", required=required, help=text)


def _recipe_file(parser: Any) -> None:
    parser.add_argument("--recipe", metavar="F", help="a TOML file, a preset, or a manifest to replay")


def _help(key: str) -> str:
    return str(Recipe.__dataclass_fields__[key].metadata["help"]).replace("%", "%%")


def _quantization(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quantization", "each of these stands over the same key of the recipe")
    _recipe_file(group)
    group.add_argument("--precision", choices=PRECISIONS, metavar="P", help=_help("precision"))
    group.add_argument("--calibrator", metavar="C", help=_help("calibrator"))
    group.add_argument("--high-precision", choices=HIGH_PRECISIONS, metavar="H", help=_help("high_precision"))
    group.add_argument("--keep", action="append", metavar="REGEX", help=f"{_help('keep')}; repeatable")
    group.add_argument(
        "--weight-granularity", choices=WEIGHT_GRANULARITIES, metavar="G", help=_help("weight_granularity")
    )
    group.add_argument("--samples", type=int, metavar="N", help=_help("samples"))
    group.add_argument("--batch", type=int, metavar="N", help=_help("batch"))
    group.add_argument("--workers", type=int, metavar="N", help=_help("workers"))


def _engine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument("--target", metavar="T", help=_help("target"))
    group.add_argument(
        "--shapes",
        action="append",
        metavar="X=MIN,OPT,MAX",
        help="optimization profile, such as x=1x3x224x224,8x3x224x224,32x3x224x224; repeatable; unset: from data",
    )
    group.add_argument("--strict", action="store_true", default=None, help=_help("strict"))


def _gates(parser: argparse.ArgumentParser, *, samples: bool = True) -> None:
    group = parser.add_argument_group("verification")
    group.add_argument("--min-sqnr", type=float, metavar="DB", help=_help("min_sqnr"))
    group.add_argument("--max-drop", type=float, metavar="X", help=_help("max_drop"))
    group.add_argument("--metric", metavar="M", help=_help("metric"))
    if samples:
        group.add_argument("--verify-data", metavar="D", help=_help("verify_data"))
        group.add_argument("--verify-samples", type=int, metavar="N", help=_help("verify_samples"))


def _explain(error: Exception, debug: bool) -> None:
    """One paragraph on stderr; the traceback only with --debug."""
    if debug:
        _say("".join(traceback.format_exception(error)).rstrip())
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
