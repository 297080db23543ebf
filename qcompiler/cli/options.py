"""The commands and options of the command line, as argparse parsers that know what was meant."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any, NoReturn, Self

from qcompiler._version import __version__
from qcompiler.cli import commands
from qcompiler.errors import UsageError
from qcompiler.recipe.budget import EFFORTS
from qcompiler.recipe.recipe import (
    DEVICES,
    HIGH_PRECISIONS,
    IO_TYPES,
    OBJECTIVES,
    PRECISIONS,
    PRESETS,
    WEIGHT_CLIPS,
    WEIGHT_GRANULARITIES,
    Recipe,
)
from qcompiler.recipe.tables import (
    WEIGHT_METHODS,
    GenerationTable,
    LlmInt8Table,
    PreprocessTable,
    QfemTable,
    QfepTable,
    SmoothQuantTable,
    TextTable,
    WeightOnlyTable,
)
from qcompiler.support.suggest import did_you_mean

_MODULES = "a Hugging Face folder (safetensors, or one .gguf file), or file.py:function that returns a torch.nn.Module"
EXITS = (
    "exit codes: 0 done, 1 a defect of qcompiler, 2 usage, 3 the model, 4 the data, 5 a gate that was missed, "
    "6 the engine or target, 130 interrupted, 143 terminated"
)


class _Parser(argparse.ArgumentParser):
    """argparse whose mistakes are `UsageError`s that know the closest command or option."""

    def error(self, message: str) -> NoReturn:
        ended = message if message.endswith("?") else f"{message}."
        raise UsageError(f"{ended} '{self.prog} --help' lists what there is.")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = getattr(found, "parser", self)
            listed = [action for action in parser._actions if action.help != argparse.SUPPRESS]
            flags = [flag for action in listed for flag in action.option_strings]
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


class _Precisions(tuple[str, ...]):
    """The precisions that `--precision` takes; what stands behind `auto:` is read by the recipe."""

    __slots__ = ()

    def __new__(cls) -> Self:
        return super().__new__(cls, (*PRECISIONS, "auto"))

    def __contains__(self, value: object) -> bool:
        return super().__contains__(value) or str(value).startswith("auto:")


def parser() -> _Parser:
    """All commands."""
    parser = _Parser(
        prog="qcompiler",
        description="Compiles float ONNX models into quantized, verified TensorRT engines.",
        epilog=EXITS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"qcompiler {__version__}")
    listed = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    compile_ = _command(
        listed,
        "compile",
        commands.compile,
        "a float model into a quantized engine, with manifest and report",
        "qcompiler compile model.onnx --data calibration.npz -o out/model.engine",
    )
    _positional(compile_, "source", "SOURCE", f"the float ONNX model, or {_MODULES}")
    _data(compile_, "calibration data")
    _output(compile_, "the engine; .qdq.onnx, .manifest.json and .report.html go beside it (default: SOURCE's name)")
    _fixing(compile_.add_argument_group("model"))
    _quantization(compile_)
    _engine(compile_, apart=True)
    _gates(compile_)
    _no_cache(compile_)

    quantize = _command(
        listed,
        "quantize",
        commands.quantize,
        "the same, but stop before the engine",
        "qcompiler quantize model.onnx --data calibration.npz -o model.qdq.onnx",
    )
    _positional(quantize, "source", "SOURCE", f"the float ONNX model, or {_MODULES}")
    _data(quantize, "calibration data")
    _output(quantize, "the quantized ONNX model; manifest and report go beside it (default: SOURCE's name)")
    _fixing(quantize.add_argument_group("model"))
    _quantization(quantize)
    _engine(quantize)
    _gates(quantize)
    _no_cache(quantize)

    export = _command(
        listed,
        "export",
        commands.export,
        "a torch or Hugging Face model into ONNX, checked against torch",
        "qcompiler export SmolLM2-135M -o smollm2/model.onnx",
    )
    _positional(export, "source", "SOURCE", _MODULES)
    _output(export, "the ONNX model (default: SOURCE's name); large weights go to a .data file beside it")
    export.add_argument(
        "--past",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="decoders: with past_key_values and present, the cache (default), or without",
    )
    export.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        metavar="X",
        help="largest error against torch, relative to the largest value of an output (default: 1e-4)",
    )
    export.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that the model's folder brings: read it first"
    )

    build = _command(
        listed,
        "build",
        commands.build,
        "an engine from a model that is quantized already",
        "qcompiler build model.qdq.onnx --shapes x=1x3x224x224,8x3x224x224,32x3x224x224 -o model.engine",
    )
    _positional(build, "model", "MODEL", "the quantized ONNX model")
    _data(build, "data whose shapes make the optimization profile", texts=False)
    _output(build, "the engine (default: MODEL's name)")
    _recipe_file(build)
    _engine(build)

    verify = _command(
        listed,
        "verify",
        commands.verify,
        "compare a quantized model with its float model",
        "qcompiler verify model.onnx model.qdq.onnx --data heldout.npz --min-sqnr 20",
    )
    _positional(verify, "float", "FLOAT", "the float ONNX model")
    _positional(verify, "quantized", "QUANTIZED", "the quantized ONNX model, or an engine where it can run")
    _data(verify, "data to compare on", required=True)
    _recipe_file(verify)
    _fixing(verify)
    verify.add_argument(
        "--samples", dest="verify_samples", type=int, metavar="N", help="compare on so many feeds at most (default: 64)"
    )
    _gates(verify, samples=False)

    inspect = _command(
        listed,
        "inspect",
        commands.inspect,
        "what is in a model, what can be quantized, where it spikes",
        "qcompiler inspect model.onnx --data calibration.npz",
    )
    _positional(inspect, "model", "MODEL", "an ONNX model")
    _data(inspect, "data to measure ranges on; without it only the graph is looked at")
    _recipe_file(inspect)
    inspect.add_argument("--target", metavar="T", help=_help("target"))
    _fixing(inspect)
    _batch_axis(inspect)
    inspect.add_argument("--samples", type=int, metavar="N", help=_help("samples"))
    inspect.add_argument("--report", metavar="FILE.html", help="write everything as an HTML file too, with plots")
    inspect.add_argument("--all", action="store_true", help="list every node, also of large models")

    sensitivity = _command(
        listed,
        "sensitivity",
        commands.sensitivity,
        "which layers low precision hurts, in which format, by weights or by activations",
        "qcompiler sensitivity model.onnx --data calibration.npz --formats int8,fp8,e5m2",
    )
    _positional(sensitivity, "model", "MODEL", "the float ONNX model")
    _data(sensitivity, "data to set ranges and measure on", required=True)
    _recipe_file(sensitivity)
    sensitivity.add_argument(
        "--formats",
        default="int8,fp8",
        metavar="F",
        help="some of int8, fp8, e5m2, int4, nf4, fp4; layers are ranked by the first (default: int8,fp8)",
    )
    _fixing(sensitivity)
    _batch_axis(sensitivity)
    sensitivity.add_argument("--samples", type=int, metavar="N", help=_help("samples"))
    sensitivity.add_argument("--target", metavar="T", help=_help("target"))
    sensitivity.add_argument("--keep", action="append", metavar="REGEX", help=f"{_help('keep')}; repeatable")
    sensitivity.add_argument("--report", metavar="FILE.html", help="write all layers as an HTML file too")
    sensitivity.add_argument(
        "--exact", action="store_true", help="measure on all samples instead of as many as the ranking takes: slow"
    )
    sensitivity.add_argument("--all", action="store_true", help="list every layer, also of large models")

    bench = _command(
        listed,
        "bench",
        commands.bench,
        "latency and throughput of models side by side",
        "qcompiler bench model.onnx model.qdq.onnx --batch 1,4,8 --prompt 128 --generate 32 -o bench.html",
    )
    bench.add_argument("models", metavar="MODEL", nargs="+", help="ONNX models or engines, the first to compare with")
    _data(bench, "feeds; for decoders, where tokens are taken from; without it: random numbers")
    bench.add_argument("-o", "--output", metavar="FILE", help="plots and figures as .html, or the plots as .png")
    bench.add_argument("--batch", default="1", metavar="N,N", help="samples or texts at a time (default: 1)")
    bench.add_argument(
        "--shapes", action="append", metavar="X=SHAPE", help="input shape, such as x=1x3x224x224; repeatable"
    )
    text = bench.add_argument_group("decoders", "models that take input_ids and give logits")
    text.add_argument("--prompt", default="128", metavar="N,N", help="tokens of a prompt (default: 128)")
    text.add_argument("--generate", type=int, default=32, metavar="N", help="tokens of an answer (default: 32)")
    turns = bench.add_argument_group("measuring")
    turns.add_argument("--rounds", type=int, default=10, metavar="N", help="how often all are measured (default: 10)")
    turns.add_argument("--warmup", type=int, default=1, metavar="N", help="unmeasured runs before (default: 1)")
    turns.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="begin no round that would end later (default: 60)"
    )
    turns.add_argument("--threads", type=int, default=0, metavar="N", help="of ONNX Runtime (default: all processors)")
    turns.add_argument("--provider", choices=("cpu", "cuda"), default="cpu", help="of ONNX Runtime (default: cpu)")
    turns.add_argument(
        "--target", default="tensorrt-rtx", metavar="T", help="whose engines the other files are, if nothing says so"
    )

    explain = _command(
        listed,
        "explain",
        commands.explain,
        "everything known of one node: why, what was tried, ranges, neighbours, kernel",
        "qcompiler explain out/model.manifest.json Conv_3",
    )
    stored = "a manifest, an engine or model beside which it lies, or the folder of a compilation"
    _positional(explain, "manifest", "MANIFEST", stored)
    _positional(
        explain, "node", "NODE", "its name, the tensor that it writes, a part of the name, or a regular expression"
    )

    diff = _command(
        listed,
        "diff",
        commands.diff,
        "what changed between two compilations: types, ranges, accuracy, size, predicted time",
        "qcompiler diff before/model.manifest.json after/model.manifest.json --max-loss-db 0.5",
    )
    _positional(diff, "a", "A", f"{stored}, to compare with")
    _positional(diff, "b", "B", "the other one, likewise")
    diff.add_argument("--all", action="store_true", help="list every row of long tables")
    gates = diff.add_argument_group("gates", "exit code 5 where B misses one of them; without any it is 0")
    gates.add_argument("--max-loss-db", type=float, metavar="DB", help="most SQNR that each judged view may lose")
    gates.add_argument(
        "--max-slower", type=float, metavar="X", help="most that the predicted time may grow, relative: 0.05 for 5 %%"
    )
    gates.add_argument(
        "--fail-on",
        metavar="F",
        help="some of precision, accuracy, size, time, with commas between them: B may not be worse in that at all",
    )

    cache = listed.add_parser(
        "cache", help="show or clear what compilations keep", description="Results of stages, kept between runs."
    )
    kept = cache.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    _command(kept, "show", commands.cache_show, "where it is, how large, and what of", "qcompiler cache show")
    _command(kept, "clear", commands.cache_clear, "remove all of it", "qcompiler cache clear")

    passes = _command(listed, "passes", commands.passes, "the graph rewrites and their options", "qcompiler passes")
    passes.add_argument("name", metavar="NAME", nargs="?", help="only this one")

    recipe = listed.add_parser("recipe", help="show, list or check recipes", description="Recipes are TOML files.")
    kinds = recipe.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    show = _command(
        kinds, "show", commands.recipe_show, "print a complete recipe as TOML", "qcompiler recipe show int8 > my.toml"
    )
    check = _command(
        kinds, "check", commands.recipe_check, "is this file a valid recipe?", "qcompiler recipe check my.toml"
    )
    for one in (show, check):
        _positional(one, "recipe", "RECIPE", f"a preset ({', '.join(PRESETS)}), a TOML file or a manifest")
    _command(kinds, "list", commands.recipe_list, "the names of the presets", "qcompiler recipe list")
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


def _no_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-cache",
        dest="cache",
        action="store_false",
        help="neither use nor keep results of stages; see 'qcompiler cache show'",
    )


def _positional(parser: argparse.ArgumentParser, name: str, metavar: str, what: str) -> None:
    parser.add_argument(name, metavar=metavar, help=what)


def _output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help=what)


def _data(parser: argparse.ArgumentParser, what: str, *, required: bool = False, texts: bool = True) -> None:
    text = (
        f"{what}: an .npz or .npy with samples on axis 0, a folder of them, of pictures or sounds, file.py:function, "
        "or random (smoke tests only)"
    )
    if not texts:
        parser.add_argument("--data", metavar="D", required=required, help=text)
        _preprocess(parser)
        return
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--data", metavar="D", help=text)
    files = f"{what}, made of text: a UTF-8 file or a folder of .txt; repeatable; for language models"
    group.add_argument("--text", dest="texts", action="append", metavar="FILE", help=files)
    parser.add_argument("--tokenizer", metavar="DIR", help=f"for --text: {_help('tokenizer', TextTable)}")
    parser.add_argument("--length", type=int, metavar="N", help=f"for --text: {_help('length', TextTable)}")
    _preprocess(parser)


def _preprocess(parser: argparse.ArgumentParser) -> None:
    text = f"for pictures, sounds and other files: {_help('method', PreprocessTable)}"
    parser.add_argument("--preprocess", dest="preprocess_method", metavar="M", help=text)
    parser.add_argument("--picture-size", metavar="HxW", help=f"for --preprocess: {_help('size', PreprocessTable)}")


def _batch_axis(parser: Any) -> None:
    parser.add_argument("--batch-axis", action="append", metavar="X=N", help=f"{_help('batch_axis')}; repeatable")


def _fixing(parser: Any) -> None:
    parser.add_argument("--fix-input", action="append", metavar="X=VALUE", help=f"{_help('fix_input')}; repeatable")
    parser.add_argument("--fix-shape", action="append", metavar="X=SHAPE", help=f"{_help('fix_shape')}; repeatable")


def _recipe_file(parser: Any) -> None:
    parser.add_argument("--recipe", metavar="F", help="a TOML file, a preset, or a manifest to replay")


def _help(key: str, table: type[Any] = Recipe) -> str:
    return str(table.__dataclass_fields__[key].metadata["help"]).replace("%", "%%")


def _quantization(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quantization", "each of these stands over the same key of the recipe")
    _recipe_file(group)
    group.add_argument("--precision", choices=_Precisions(), metavar="P", help=_help("precision"))
    group.add_argument("--calibrator", metavar="C", help=_help("calibrator"))
    group.add_argument("--ranges", metavar="FILE", help=_help("ranges"))
    group.add_argument("--high-precision", choices=HIGH_PRECISIONS, metavar="H", help=_help("high_precision"))
    group.add_argument("--keep", action="append", metavar="REGEX", help=f"{_help('keep')}; repeatable")
    group.add_argument(
        "--weight-granularity", choices=WEIGHT_GRANULARITIES, metavar="G", help=_help("weight_granularity")
    )
    group.add_argument("--weight-clip", choices=WEIGHT_CLIPS, metavar="W", help=_help("weight_clip"))
    group.add_argument("--equalize", action="store_true", default=None, help=_help("equalize"))
    group.add_argument("--io-types", choices=IO_TYPES, metavar="T", help=_help("io_types"))
    group.add_argument("--samples", type=int, metavar="N", help=_help("samples"))
    group.add_argument("--batch", type=int, metavar="N", help=_help("batch"))
    group.add_argument("--workers", type=int, metavar="N", help=_help("workers"))
    group.add_argument("--ray", metavar="ADDRESS", help=_help("ray"))
    group.add_argument("--device", choices=DEVICES, metavar="D", help=_help("device"))
    group.add_argument("--shard-size", metavar="SIZE", help=_help("shard_size"))
    group.add_argument("--max-memory", metavar="SIZE", help=_help("max_memory"))
    outliers = parser.add_argument_group(
        "outliers", "keys of the recipe's tables [smooth_quant], [qfem], [qfep], [llm_int8]"
    )
    _method(outliers, "--smooth-quant", "smooth_quant_alpha", "ALPHA", "SmoothQuant", SmoothQuantTable, "--smooth")
    _method(outliers, "--llm-int8", "llm_int8_threshold", "X", "LLM.int8()", LlmInt8Table)
    insert: dict[str, Any] = {"dest": "smooth_quant_insert", "action": "store_true", "default": None}
    outliers.add_argument("--smooth-quant-insert", help=_help("insert", SmoothQuantTable), **insert)
    outliers.add_argument("--smooth-insert", help=argparse.SUPPRESS, **insert)
    _method(outliers, "--qfem", "qfem_alpha", "ALPHA", "QFeM", QfemTable)
    _method(outliers, "--qfep", "qfep_prefix", "PREFIX", "QFeP", QfepTable)
    search = parser.add_argument_group("search", "which of the plans that meet the goal (see verification) is taken")
    search.add_argument("--objective", choices=OBJECTIVES, metavar="O", help=_help("objective"))
    search.add_argument("--pick", metavar="POINT", help=_help("pick"))
    search.add_argument("--effort", choices=tuple(EFFORTS), metavar="E", help=_help("effort"))
    search.add_argument("--search-time", metavar="T", help=_help("search_time"))
    search.add_argument(
        "--reproducible", action=argparse.BooleanOptionalAction, default=None, help=_help("reproducible")
    )
    stored = parser.add_argument_group("weight-only", "keys of the recipe's table [weight_only]")
    _weight_only(stored, "method", "M", "--weight-method", choices=WEIGHT_METHODS)
    _weight_only(stored, "block_size", "N", "--block-size", type=int)
    _weight_only(stored, "head", "H", "--weight-head")
    _weight_only(stored, "storage", "S", "--weight-storage")


def _method(group: Any, flag: str, name: str, metavar: str, spoken: str, table: type[Any], *old: str) -> None:
    """A flag that switches a method; `old` spellings work and are not listed."""
    key = name.rpartition("_")[2]
    group.add_argument(flag, dest=name, metavar=metavar, help=f"{spoken}: {_help(key, table)}")
    for spelling in old:
        group.add_argument(spelling, dest=name, metavar=metavar, help=argparse.SUPPRESS)


def _weight_only(group: Any, key: str, metavar: str, old: str, **checks: Any) -> None:
    """A flag for a key of [weight_only]; its `old` spelling works and is not listed."""
    name = f"weight_only_{key}"
    shown = f"--{name.replace('_', '-')}"
    group.add_argument(shown, dest=name, metavar=metavar, help=_help(key, WeightOnlyTable), **checks)
    group.add_argument(old, dest=name, metavar=metavar, help=argparse.SUPPRESS, **checks)


def _engine(parser: argparse.ArgumentParser, *, apart: bool = False) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument("--target", metavar="T", help=_help("target"))
    group.add_argument(
        "--shapes",
        action="append",
        metavar="X=MIN,OPT,MAX",
        help="optimization profile, such as x=1x3x224x224,8x3x224x224,32x3x224x224; repeatable; unset: from data",
    )
    if apart:
        group.add_argument("--engine-per-sm", action="store_true", default=None, help=_help("engine_per_sm"))
    group.add_argument("--plugin", action="append", metavar="LIB", help=f"{_help('plugin')}; repeatable")
    _batch_axis(group)
    group.add_argument("--strict", action="store_true", default=None, help=_help("strict"))
    for name in ("max_length", "prompt"):
        text = f"decoders with a cache: {_help(name, GenerationTable)}"
        group.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=text)


def _gates(parser: argparse.ArgumentParser, *, samples: bool = True) -> None:
    group = parser.add_argument_group("verification")
    group.add_argument("--min-sqnr", type=float, metavar="DB", help=_help("min_sqnr"))
    group.add_argument("--max-drop", metavar="X", help=_help("max_drop"))
    group.add_argument("--metric", metavar="M", help=_help("metric"))
    group.add_argument("--allow-broken", action="store_true", default=None, help=_help("allow_broken"))
    group.add_argument("--ignore-output", action="append", metavar="NAME", help=f"{_help('ignore_output')}; repeatable")
    if samples:
        group.add_argument("--min-share", type=float, metavar="X", help=_help("min_share"))
        group.add_argument("--verify-data", metavar="D", help=_help("verify_data"))
        group.add_argument("--verify-text", action="append", metavar="FILE", help=f"{_help('verify_text')}; repeatable")
        group.add_argument("--verify-samples", type=int, metavar="N", help=_help("verify_samples"))
