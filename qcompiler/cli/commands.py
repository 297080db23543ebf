"""What each command of the command line calls, and the recipe that its options make; no logic.

Nothing heavy is imported before a command runs, so that --help is there at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from qcompiler.cli.view import Screen
from qcompiler.errors import AccuracyError, UsageError
from qcompiler.recipe.checks import parse_batch_axes, parse_fixed_inputs, parse_fixed_shapes, parse_shapes
from qcompiler.recipe.recipe import PRESETS, Recipe, preset
from qcompiler.recipe.tables import PreprocessTable
from qcompiler.support.interrupts import WRITTEN
from qcompiler.support.suggest import did_you_mean

TABLES: Final[Mapping[str, tuple[str, str]]] = {  # which key of which table of the recipe an option sets
    "smooth_quant_alpha": ("smooth_quant", "alpha"),
    "smooth_quant_insert": ("smooth_quant", "insert"),
    "llm_int8_threshold": ("llm_int8", "threshold"),
    "qfem_alpha": ("qfem", "alpha"),
    "qfep_prefix": ("qfep", "prefix"),
    "weight_only_method": ("weight_only", "method"),
    "weight_only_block_size": ("weight_only", "block_size"),
    "weight_only_head": ("weight_only", "head"),
    "weight_only_storage": ("weight_only", "storage"),
    "preprocess_method": ("preprocess", "method"),
    "picture_size": ("preprocess", "size"),
    "max_length": ("generation", "max_length"),
    "prompt": ("generation", "prompt"),
}


def compile(options: argparse.Namespace, view: Screen) -> None:
    """A float model into an engine."""
    from qcompiler.compiler.compile import compile

    _compiled(compile, "engine", options, view)


def quantize(options: argparse.Namespace, view: Screen) -> None:
    """A float model into a quantized model."""
    from qcompiler.compiler.compile import quantize

    _compiled(quantize, "qdq.onnx", options, view)


def _compiled(make: Callable[..., Any], ending: str, options: argparse.Namespace, view: Screen) -> None:
    from qcompiler.report import terminal

    recipe = _recipe(options)
    with _refused(view):
        result = make(
            options.source,
            data=_data(options, recipe),
            recipe=recipe,
            output=options.output or f"{_stem(options.source)}.{ending}",
            progress=view.progress,
            cache=options.cache,
        )
    try:
        view.people(*terminal.summary(result.manifest), *terminal.artefacts(result))
        view.result(result.manifest)
    except KeyboardInterrupt as error:
        raise type(error)(WRITTEN) from None


@contextlib.contextmanager
def _refused(view: Screen) -> Iterator[None]:
    """A missed gate is a document too: what went wrong, the exit code, and all that was recorded."""
    try:
        yield
    except AccuracyError as error:
        if error.manifest is not None:
            view.result({"error": str(error), "code": error.exit_code, "manifest": error.manifest})
        raise


def export(options: argparse.Namespace, view: Screen) -> None:
    """A torch or Hugging Face model into ONNX."""
    from qcompiler.frontends.export import export
    from qcompiler.report import terminal

    result = export(
        options.source,
        options.output or f"{_stem(options.source)}.onnx",
        past=options.past,
        tolerance=options.tolerance,
        trust_remote_code=options.trust_remote_code,
        progress=view.progress,
    )
    view.people(*terminal.export(result.to_json(), result.path.parent))
    view.result(result.to_json())


def build(options: argparse.Namespace, view: Screen) -> None:
    """A quantized model into an engine."""
    from qcompiler.compiler.build import build
    from qcompiler.report import terminal

    output = options.output or f"{Path(options.model).name.removesuffix('.onnx').removesuffix('.qdq')}.engine"
    result = build(options.model, output=output, data=options.data, recipe=_recipe(options), progress=view.progress)
    view.people(*terminal.summary(result.manifest), *terminal.artefacts(result))
    view.result(result.manifest)


def verify(options: argparse.Namespace, view: Screen) -> None:
    """Float against quantized, and the gates."""
    from qcompiler.report import terminal
    from qcompiler.tools.verify import verify
    from qcompiler.verification.gates import Gates
    from qcompiler.verification.verdict import require, verdict_of

    recipe = _recipe(options)
    verification = verify(
        options.float, options.quantized, data=_data(options, recipe), recipe=recipe, progress=view.progress
    )
    gates = Gates(recipe.min_sqnr, recipe.max_drop, recipe.allow_broken)
    found = {"verdict": verdict_of(verification, gates).to_json()}
    view.people(*terminal.first_lines(found), *terminal.verification(verification.to_json()))
    view.result({**found, **verification.to_json()})
    require(verification, gates)


def inspect(options: argparse.Namespace, view: Screen) -> None:
    """What is in a model."""
    from qcompiler.report import html, terminal
    from qcompiler.support.atomic import check_writable, write_text
    from qcompiler.tools.inspect.inspection import inspect

    if options.report is not None:
        check_writable(options.report)
    recipe = _recipe(options)
    found = inspect(options.model, data=_data(options, recipe), recipe=recipe, progress=view.progress).to_json()
    if options.report is not None:
        write_text(options.report, html.inspection(found))
    view.people(*terminal.inspection(found, everything=options.all))
    view.result(found)


def sensitivity(options: argparse.Namespace, view: Screen) -> None:
    """Which layers low precision hurts."""
    from qcompiler.report import sensitivity as report
    from qcompiler.support.atomic import check_writable, write_text
    from qcompiler.tools.sensitivity.sensitivity import sensitivity

    if options.report is not None:
        check_writable(options.report)
    recipe = _recipe(options)
    found = sensitivity(
        options.model,
        data=_data(options, recipe),
        formats=options.formats,
        exact=options.exact,
        recipe=recipe,
        progress=view.progress,
    ).to_json()
    if options.report is not None:
        write_text(options.report, report.html(found))
    view.people(*report.terminal(found, everything=options.all))
    view.result(found)


def bench(options: argparse.Namespace, view: Screen) -> None:
    """Latency and throughput side by side."""
    from qcompiler.report import bench as report
    from qcompiler.support.atomic import check_writable, write_bytes, write_text
    from qcompiler.tools.bench.bench import bench

    kind = Path(options.output).suffix if options.output else ""
    if options.output and kind not in (".html", ".png"):
        raise UsageError(f"the output '{options.output}' is neither .html nor .png: choose one of these endings")
    if options.output:
        check_writable(options.output)
    batches, prompts = _numbers("--batch", options.batch), _numbers("--prompt", options.prompt)
    found = bench(
        options.models,
        data=_bench_data(options, max(prompts) + options.generate),
        shapes=parse_shapes(";".join(options.shapes)) if options.shapes else None,
        batches=batches,
        prompts=prompts,
        generate=options.generate,
        rounds=options.rounds,
        warmup=options.warmup,
        seconds=options.seconds,
        threads=options.threads,
        provider=options.provider,
        target=options.target,
        progress=view.progress,
    ).to_json()
    if kind == ".html":
        write_text(options.output, report.html(found))
    elif kind == ".png":
        write_bytes(options.output, report.png(found))
    view.people(*report.terminal(found))
    view.result(found)


def _bench_data(options: argparse.Namespace, length: int) -> Any:
    """What --data names, or windows of text, by default as long as prompt and answer."""
    changes: dict[str, Any] = {}
    beside = argparse.Namespace(**vars(options), source=options.models[0])
    _add_text(beside, Recipe(), changes)
    changes["preprocess"] = PreprocessTable(options.preprocess_method, options.picture_size)
    _add_preprocess(beside, Recipe(), changes)
    recipe = Recipe(**changes)
    if options.texts and recipe.text.length is None:
        recipe = recipe.replace(text=dataclasses.replace(recipe.text, length=length))
    if options.texts:
        return _data(options, recipe)
    from qcompiler.data.source import prepared

    return prepared(options.data, recipe.preprocess)


def _numbers(name: str, text: str) -> list[int]:
    """`1,4,8` as numbers."""
    try:
        return [int(one) for one in text.split(",")]
    except ValueError:
        raise UsageError(f"{name} takes whole numbers with commas between them, such as 1,4,8, not '{text}'") from None


def explain(options: argparse.Namespace, view: Screen) -> None:
    """Everything known of one node."""
    from qcompiler.report.questions import explain as report
    from qcompiler.tools.explain import explain

    found = explain(options.manifest, options.node).to_json()
    view.people(*report.terminal(found))
    view.result(found)


def diff(options: argparse.Namespace, view: Screen) -> None:
    """What changed between two compilations."""
    from qcompiler.report.questions import diff as report
    from qcompiler.tools.diff import diff

    found = diff(
        options.a,
        options.b,
        max_loss_db=options.max_loss_db,
        max_slower=options.max_slower,
        fail_on=[word.strip() for word in options.fail_on.split(",")] if options.fail_on else (),
    )
    view.people(*report.terminal(found.to_json(), everything=options.all))
    view.result(found.to_json())
    found.require()


def cache_show(options: argparse.Namespace, view: Screen) -> None:
    """What is kept between compilations."""
    from qcompiler.compiler.kept.opened import store_of
    from qcompiler.compiler.kept.shown import shown
    from qcompiler.report.questions import kept

    store = store_of()
    found = None if store is None else shown(store)
    view.people(*kept.terminal(found))
    view.result({"cache": found})


def cache_clear(options: argparse.Namespace, view: Screen) -> None:
    """Removes it."""
    from qcompiler.compiler.kept.opened import store_of
    from qcompiler.report.questions import kept

    store = store_of()
    removed = 0 if store is None else store.clear()
    view.people(*kept.cleared(removed))
    view.result({"removed_bytes": removed})


def passes(options: argparse.Namespace, view: Screen) -> None:
    """The graph rewrites."""
    from qcompiler.passes import text_form
    from qcompiler.report import terminal

    known = text_form.available()
    if options.name and options.name not in known:
        raise UsageError(f"there is no pass '{options.name}': {did_you_mean(options.name, known)}")
    chosen = {options.name: known[options.name]} if options.name else known
    rows = [text_form.describe(one) for one in chosen.values()]
    if not view.json:
        view.people(*terminal.passes(rows))
    view.result(rows)


def recipe_show(options: argparse.Namespace, view: Screen) -> None:
    """A recipe as TOML."""
    recipe = _recipe_source(options.recipe)
    if not view.json:
        sys.stdout.write(recipe.to_toml())
    view.result(recipe.to_dict())


def recipe_list(options: argparse.Namespace, view: Screen) -> None:
    """The names of the presets."""
    if not view.json:
        sys.stdout.write("\n".join(PRESETS) + "\n")
    view.result({name: preset(name).to_dict() for name in PRESETS})


def recipe_check(options: argparse.Namespace, view: Screen) -> None:
    """Whether a recipe is valid."""
    recipe = _recipe_source(options.recipe)
    view.people(f"{options.recipe} is a valid recipe: {recipe.precision} for {recipe.target}")
    view.result(recipe.to_dict())


def _stem(source: str) -> str:
    """What artefacts are named by: the file without its ending, or the folder, whose name may have dots."""
    path = Path(source).resolve() if Path(source).is_dir() else Path(source)
    return path.name if path.is_dir() else path.stem


def _recipe_source(text: str) -> Recipe:
    """A preset's name, a TOML file, or a manifest whose recipe is used again."""
    if text in PRESETS and not Path(text).exists():
        return preset(text)
    if text.endswith(".json"):
        from qcompiler.report.manifest import replay

        return replay(text)
    if not Path(text).exists() and not text.endswith(".toml"):
        raise UsageError(f"there is no recipe '{text}': neither a file nor a preset; {did_you_mean(text, PRESETS)}")
    return Recipe.from_toml(Path(text))


def _recipe(options: argparse.Namespace) -> Recipe:
    """The recipe of --recipe, or the preset of the precision, with the options that were given put over it."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    base = _recipe_source(given["recipe"]) if "recipe" in given else _of_precision(given.get("precision", "int8"))
    changes = {name: given[name] for name in base.to_dict() if name in given}
    if "shapes" in changes:
        changes["shapes"] = parse_shapes(";".join(changes["shapes"]))
    if "batch_axis" in changes:
        changes["batch_axis"] = {**(base.batch_axis or {}), **parse_batch_axes(changes["batch_axis"])}
    for key, read in (("fix_input", parse_fixed_inputs), ("fix_shape", parse_fixed_shapes)):
        if key in changes:
            changes[key] = {**(getattr(base, key) or {}), **read(changes[key])}
    if "pick" in changes and given.get("recipe", "").endswith(".json"):
        changes["replay"] = Path(given["recipe"]).as_posix()
    if "keep" in changes:
        changes["keep"] = (*base.keep, *changes["keep"])
    tables: dict[str, dict[str, Any]] = {}
    for option, (table, key) in TABLES.items():
        if option in given:
            value = _figure(given[option]) if key in ("alpha", "threshold") else given[option]
            tables.setdefault(table, {})[key] = value
    changes.update({name: dataclasses.replace(getattr(base, name), **keys) for name, keys in tables.items()})
    _add_text(options, base, changes)
    _add_preprocess(options, base, changes)
    return base.replace(**changes)


def _add_text(options: argparse.Namespace, base: Recipe, changes: dict[str, Any]) -> None:
    """--tokenizer and --length as keys of the recipe; without a tokenizer, the one beside the model is taken."""
    given = {key: value for key in ("tokenizer", "length") if (value := getattr(options, key, None)) is not None}
    if not getattr(options, "texts", None) and not changes.get("verify_text", base.verify_text):
        if given:
            raise UsageError(f"--{next(iter(given))} is for text: name the text files with --text or --verify-text")
        return
    model = next((getattr(options, key) for key in ("source", "model", "float") if hasattr(options, key)), "")
    folder = Path(model) if Path(model).is_dir() else Path(model).parent
    if base.text.tokenizer is None and "tokenizer" not in given:
        if (folder / "tokenizer.json").is_file():
            given["tokenizer"] = (folder / "tokenizer.json").as_posix()
        elif Path(model).is_dir() and any(folder.glob("*.gguf")):  # which has its tokenizer inside
            given["tokenizer"] = folder.as_posix()
    if given:
        changes["text"] = dataclasses.replace(base.text, **given)


def _add_preprocess(options: argparse.Namespace, base: Recipe, changes: dict[str, Any]) -> None:
    """Where nothing says how pictures or sounds are prepared, the configuration beside the model is taken."""
    table = changes.get("preprocess", base.preprocess)
    data = [one for key in ("data", "verify_data") if (one := getattr(options, key, None)) is not None]
    config = _beside(options) / "preprocessor_config.json"
    if table.method is None and config.is_file() and any(map(_unprepared, data)):
        changes["preprocess"] = dataclasses.replace(table, method=config.as_posix())


def _unprepared(data: str) -> bool:
    """Whether it is a folder or a file of pictures or sounds."""
    from qcompiler.data.files.listing import kind_at

    return Path(data).exists() and kind_at(Path(data)) in ("pictures", "sounds")


def _beside(options: argparse.Namespace) -> Path:
    """The folder that the model is or lies in."""
    model = next((getattr(options, key) for key in ("source", "model", "float") if hasattr(options, key)), "")
    return Path(model) if Path(model).is_dir() else Path(model).parent


def _data(options: argparse.Namespace, recipe: Recipe) -> Any:
    """What --data names, or windows out of the files of --text."""
    if not options.texts:
        return options.data
    if recipe.text.tokenizer is None:
        raise UsageError(
            "--text needs a tokenizer: give --tokenizer DIR, a tokenizer.json or the folder that has one (beside this "
            "model there is none)"
        )
    from qcompiler.data.text import Text

    return Text(tuple(options.texts), recipe.text.tokenizer, recipe.text.length)


def _of_precision(precision: str) -> Recipe:
    return preset(precision) if precision in PRESETS else Recipe(precision=precision)


def _figure(text: str | float) -> str | float:
    """A number where it is one; whether a word is allowed is the recipe's business."""
    try:
        return float(text)
    except ValueError:
        return text
