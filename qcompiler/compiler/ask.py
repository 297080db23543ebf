"""From a recipe to the options of each stage; what cannot work is refused before anything is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler import calibrators
from qcompiler.calibrators.auto import AUTO
from qcompiler.compiler.artefacts import Paths
from qcompiler.compiler.serving import BuildOptions
from qcompiler.compiler.stages.check_data import CheckDataOptions
from qcompiler.compiler.stages.load import LoadOptions
from qcompiler.compiler.stages.lower import LowerOptions
from qcompiler.compiler.stages.observe import ObserveOptions
from qcompiler.compiler.stages.verify import VerifyOptions
from qcompiler.data.source import Data
from qcompiler.data.text import Text
from qcompiler.errors import EngineError, UsageError
from qcompiler.outliers.llm_int8 import LlmInt8Options
from qcompiler.outliers.qfep.find import QfepOptions
from qcompiler.outliers.smooth_quant.trials import SmoothQuantOptions
from qcompiler.passes.fixed import fixed_by
from qcompiler.planning import dynamic
from qcompiler.planning.chosen import Planning
from qcompiler.planning.placement.scope import Scope
from qcompiler.planning.recorded import Recorded
from qcompiler.planning.search.watch import Watch
from qcompiler.recipe.checks import METRICS
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable
from qcompiler.report import manifest as manifests
from qcompiler.runtime.gpu import device
from qcompiler.support.atomic import check_writable
from qcompiler.support.sizes import parse_size
from qcompiler.target import DType, Target, require_fp8
from qcompiler.verification.gates import Gates
from qcompiler.verification.held_out import HeldOut
from qcompiler.verification.metric import check_metric
from qcompiler.verification.share import Promise
from qcompiler.weight_only import methods
from qcompiler.weight_only.storable import WeightOnlyOptions

SLOW_FP8 = (
    "ONNX Runtime's optimisations break FP8 graphs on the CPU, so they are off: this shows the accuracy of FP8 and not "
    "its speed; for that choose --target tensorrt-rtx"
)


@dataclass(frozen=True)
class Asked:
    """A recipe, cut into what each stage may see.

    Attributes:
        recipe: as it was effectively used, for the manifest.
        target: the machine, as it was asked for.
        search: what the search for formats and ranges may know of it: the same for GPUs that it cannot tell apart.
        paths: the artefacts.
        promise: what was asked for of the share that is quantized.
        replayed: the front of an earlier compilation, of which a plan is made; None where there is a search.
        warnings: what the user should know before anything begins.
    """

    recipe: Recipe
    target: Target
    search: Target
    paths: Paths
    promise: Promise
    load: LoadOptions
    qfep: QfepOptions | None
    watch: Watch
    observe: ObserveOptions
    check_data: CheckDataOptions
    smooth_quant: SmoothQuantOptions | None
    llm_int8: LlmInt8Options | None
    weight_only: WeightOnlyOptions | None
    planning: Planning
    lower: LowerOptions
    verify: VerifyOptions
    gates: Gates
    build: BuildOptions
    replayed: Recorded | None = None
    warnings: tuple[str, ...] = ()

    @property
    def shard(self) -> int | None:
        """Most bytes of a file of weights; None for no limit."""
        return None if self.recipe.shard_size is None else parse_size(self.recipe.shard_size)

    @property
    def max_memory(self) -> int | None:
        """Bytes of memory that may be taken; None for what is free."""
        return None if self.recipe.max_memory is None else parse_size(self.recipe.max_memory)

    def after_export(self, record: Mapping[str, Any] | None) -> Asked:
        """The same for a model that was exported before: its manifest says how."""
        return dataclasses.replace(self, load=dataclasses.replace(self.load, export=record))


def ask(recipe: Recipe, data: Data | None, output: Path, *, build: bool) -> Asked:
    """The options of each stage.

    Args:
        recipe: what the user asked for.
        data: the calibration data; only what kind it is is looked at.
        output: the engine file, or the quantized ONNX file where none is built.
        build: an engine will be built.

    Raises:
        UsageError: options that do not go together, an output that cannot be written, missing data.
        EngineError: a GPU of the target lacks a type.
    """
    recipe = settled(recipe, data)
    paths = Paths.of(output, build=build)
    target, warnings = _refused(recipe, data, paths)
    # Where no listing will tell the time of an engine, the table of costs does
    by_table = recipe.objective == "time" and not (build and target.engine == "tensorrt-rtx")
    planned = planning(recipe)
    planned = dataclasses.replace(planned, by_cost=planned.by_cost or by_table)
    formats, rows_apart = recipe.formats(), dynamic.splits(recipe.precision, recipe.llm_int8)
    scope = Scope(target.anywhere, recipe.keep, bool(formats) or rows_apart)
    recorded = _recorded(recipe)
    held_out = HeldOut(
        recipe.verify_samples, recipe.verify_data, recipe.verify_text, recipe.metric, recipe.text, recipe.preprocess
    )
    gates = Gates(recipe.min_sqnr, recipe.max_drop, recipe.allow_broken)
    return Asked(
        recipe=recipe,
        target=target,
        search=target.of_its_kind if DType.FP8 in formats else target.anywhere,
        paths=paths,
        promise=_promise(recipe, by_table=by_table),
        load=LoadOptions(
            paths,
            recipe.samples,
            recipe.batch,
            held_out,
            scope,
            batch_axes=recipe.batch_axis or {},
            ignored=recipe.ignore_output,
            preprocess=recipe.preprocess,
            ranges=recipe.ranges,
            fixed=fixed_by(recipe.fix_input, recipe.fix_shape),
            replayed=recorded,
        ),
        qfep=None if recipe.qfep.prefix == "off" else QfepOptions(recipe.qfep, recipe.text.tokenizer, bool(formats)),
        watch=Watch(target.anywhere, recipe.attention),
        observe=ObserveOptions(
            recipe.samples, ranges=bool(formats), replayed=recorded, device=device.found(recipe.device)
        ),
        check_data=CheckDataOptions(
            recipe.verify_samples, profile=build and recipe.shapes is None and target.engine != "onnxruntime"
        ),
        smooth_quant=_smooth_quant(recipe, target),
        llm_int8=_llm_int8(recipe, rows_apart),
        weight_only=_weight_only(recipe, target),
        planning=_replaying(planned, recorded, recipe),
        replayed=recorded,
        lower=LowerOptions(recipe.io_types, recipe.llm_int8, recipe.min_sqnr, recipe.ignore_output),
        verify=VerifyOptions(
            recipe.verify_samples,
            True,
            recipe.ignore_output,
            recipe.safety.target_sqnr_db,
            halves=recipe.metric is not None and bool(formats) and data is not None,
            gates=gates,
        ),
        gates=gates,
        build=BuildOptions(target, recipe.shapes, recipe.generation, methods.needs_rows(recipe.precision, target)),
        warnings=warnings,
    )


def _recorded(recipe: Recipe) -> Recorded | None:
    """The front that a plan is taken from without a search.

    Raises:
        UsageError: it cannot be read, or was made for another precision or target.
    """
    if recipe.replay is None:
        return None
    made = manifests.read(recipe.replay)
    before = manifests.replay(recipe.replay)
    for name in ("precision", "target", "weight_granularity"):
        was, now = getattr(before, name), getattr(recipe, name)
        if was != now:
            raise UsageError(
                f"the front of {recipe.replay} was made with {name} '{was}', and '{now}' is asked for now: its ranges "
                "do not fit. Leave that out, or compile without --pick"
            )
    return Recorded.of(made, recipe.replay)


def _replaying(options: Planning, recorded: Recorded | None, recipe: Recipe) -> Planning:
    """With the point of an earlier front that is picked, where one is."""
    if recorded is None or recipe.pick is None:
        return options
    return dataclasses.replace(options, replay=recorded.pinned(recipe.pick))


def _smooth_quant(recipe: Recipe, target: Target) -> SmoothQuantOptions | None:
    formats = recipe.formats()
    if not formats:
        return None
    dtype = DType.INT8 if DType.INT8 in formats else DType.FP8
    per_channel = recipe.weight_granularity == "channel" if dtype is DType.INT8 else target.fp8_per_channel
    return SmoothQuantOptions(
        recipe.smooth_quant,
        recipe.qfem,
        dtype,
        recipe.calibrator,
        per_channel,
        recipe.ignore_output,
        recipe.effort,
        recipe.search_time,
        _likelihood(recipe),
    )


def _llm_int8(recipe: Recipe, rows_apart: bool) -> LlmInt8Options | None:
    formats = recipe.formats()
    if recipe.llm_int8.threshold == "off" or not (formats or rows_apart):
        return None
    dtype = DType.INT8 if rows_apart or DType.INT8 in formats else DType.FP8
    return LlmInt8Options(recipe.llm_int8, dtype, rows_apart)


def _weight_only(recipe: Recipe, target: Target) -> WeightOnlyOptions | None:
    if recipe.precision not in methods.PRECISIONS:
        return None
    return WeightOnlyOptions(recipe.precision, recipe.weight_only, target.anywhere, recipe.keep)


def _promise(recipe: Recipe, *, by_table: bool) -> Promise:
    """What the user asks of the share: where `auto` may choose float, that nothing is quantized is its good right."""
    quantizes = bool(recipe.formats()) or recipe.precision in (dynamic.PRECISION, *methods.PRECISIONS)
    chooses = by_table or (recipe.precision.startswith(AUTO) and not recipe.everything)
    certain = quantizes and not chooses
    return Promise(recipe.precision, quantizes, certain, recipe.min_share, recipe.safety.min_share)


def planning(recipe: Recipe) -> Planning:
    """What planning may see of a recipe."""
    return Planning(
        formats=recipe.formats(),
        everything=recipe.everything,
        dynamic=recipe.precision == dynamic.PRECISION,
        by_cost=recipe.precision.startswith(AUTO),
        calibrator=recipe.calibrator,
        safety=recipe.safety,
        qfem=recipe.qfem,
        min_sqnr=recipe.min_sqnr,
        min_share=recipe.min_share or 0.0,
        per_channel=recipe.weight_granularity == "channel",
        clip_weights=recipe.weight_clip == "mse",
        attention=None if recipe.attention == "float" else DType(recipe.attention),
        shapes=recipe.shapes,
        ignored=recipe.ignore_output,
        objective=recipe.objective,
        pick=recipe.pick,
        effort=recipe.effort,
        search_time=recipe.search_time,
        reproducible=recipe.reproducible,
        max_drop=recipe.max_drop,
        likelihood=_likelihood(recipe),
    )


def _likelihood(recipe: Recipe) -> bool:
    """Whether choices go by the likelihood of the next token, where there is one: nobody asks for dB."""
    return recipe.min_sqnr is None and recipe.safety.target_sqnr_db == SafetyTable().target_sqnr_db


def settled(recipe: Recipe, data: object) -> Recipe:
    """The recipe with the tokenizer and the length of a `Text`, so that a manifest says all that was used."""
    if not isinstance(data, Text):
        return recipe
    table = dataclasses.replace(recipe.text, tokenizer=Path(data.tokenizer).as_posix(), length=data.length)
    return recipe.replace(text=table)


def _refuse_ranges(recipe: Recipe, data: Data | None) -> None:
    """What does not go together with ranges that are known."""
    if recipe.ranges is None:
        return
    if not recipe.formats():
        raise UsageError(
            f"--ranges are of activations, and precision '{recipe.precision}' quantizes none: leave it out"
        )
    if recipe.equalize:
        raise UsageError("--ranges do not fit a model that --equalize rescales: leave one of them out")
    if data is not None:
        return
    if recipe.precision.startswith(AUTO):
        raise UsageError(
            f"precision '{recipe.precision}' compares formats on data, and --ranges alone has none: choose --precision "
            "int8 or fp8, or give --data"
        )
    if recipe.attention != "float":
        raise UsageError("--attention needs --data: what it costs is measured")
    for name, asked in (("--min-sqnr", recipe.min_sqnr), ("--metric", recipe.metric)):
        if asked is not None and recipe.verify_data is None and not recipe.verify_text:
            raise UsageError(f"{name} needs something to compare on, and --ranges alone has none: give --verify-data")


def _refused(recipe: Recipe, data: Data | None, paths: Paths) -> tuple[Target, tuple[str, ...]]:
    """What can be known to fail before anything is read; the target with what the precision needs of it."""
    _refuse_ranges(recipe, data)
    target = methods.refuse_early(
        recipe.precision, recipe.weight_only, recipe.resolve(), attention=recipe.attention, data=data is not None
    )
    warnings: tuple[str, ...] = ()
    if recipe.precision in ("fp16", "bf16") and recipe.high_precision not in (None, recipe.precision):
        raise UsageError(
            f"precision '{recipe.precision}' and --high-precision {recipe.high_precision} contradict each other: "
            "leave --high-precision out"
        )
    if recipe.min_share and recipe.precision in ("fp16", "bf16"):
        raise UsageError(
            f"--min-share {recipe.min_share:g} asks for a quantized type, and precision '{recipe.precision}' has none: "
            "leave it out, or choose --precision int8"
        )
    if recipe.precision in ("fp16", "bf16"):
        target = dataclasses.replace(target, high_precision=DType(recipe.precision))
    if target.engine == "onnxruntime" and target.high_precision is DType.BF16:
        raise EngineError(
            "ONNX Runtime has no BF16 kernels for the CPU, so it could not run the result: use --high-precision fp32 "
            "(also for a model that comes in BF16), or another target."
        )
    asked = recipe.precision == "fp8" or recipe.precision.startswith("auto:")  # a bare `auto` takes what there is
    if recipe.attention == "fp8" or (asked and DType.FP8 in recipe.formats()):
        require_fp8(target)
        if target.engine == "onnxruntime":
            warnings = (SLOW_FP8,)
    if data is None and recipe.ranges is None and (recipe.formats() or target.high_precision is DType.FP16):
        raise UsageError(
            f"precision '{recipe.precision}' needs the ranges of activations: give --data with real samples "
            "(an .npz, a folder of .npz or of pictures, or file.py:function), --ranges with a calibration table, or "
            "--data random for a smoke test of the tools"
        )
    if recipe.calibrator != AUTO:
        calibrators.parse(recipe.calibrator)
    if recipe.metric is not None and recipe.metric not in METRICS:
        check_metric(recipe.metric)
    for path in (paths.engine, paths.qdq, paths.manifest, paths.report):
        if path is not None:
            check_writable(path)
    return target, warnings
