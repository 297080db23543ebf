"""The stages before they were files of their own."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler import calibrators
from qcompiler.calibrators.auto import AUTO
from qcompiler.compiler.artefacts import Paths, workshop
from qcompiler.data.source import Data, Source, open_source
from qcompiler.data.text import Text
from qcompiler.engines.base import Engine, EngineFile, Profile
from qcompiler.errors import EngineError, UsageError
from qcompiler.ir import decoder_io
from qcompiler.ir import model as models
from qcompiler.ir.operators import LINEAR
from qcompiler.ir.signature import Inputs
from qcompiler.outliers.llm_int8 import Apart, LlmInt8Options, split_outliers
from qcompiler.outliers.qfep.find import Behind, QfepOptions, put_in_front
from qcompiler.outliers.smooth_quant.trials import Smoothed, SmoothQuantOptions, fold_outliers, smoothable
from qcompiler.passes.base import Pass, Pipeline, Report
from qcompiler.passes.legalize import release_quantizers
from qcompiler.passes.legalize.legalize import Legalize
from qcompiler.passes.legalize.open_stored import OpenStored
from qcompiler.passes.pipelines import NORMAL, clean_up, lowering
from qcompiler.plan import Candidate, Decision, Plan
from qcompiler.planning import dynamic
from qcompiler.planning.chosen import Chosen, Planning
from qcompiler.planning.decisions import close
from qcompiler.planning.placement import candidates
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.planning.placement.scope import Scope
from qcompiler.planning.planner import make_plan
from qcompiler.planning.search import qfem
from qcompiler.planning.search.safety_net import SafetyNet
from qcompiler.planning.search.watch import Watch
from qcompiler.recipe.recipe import METRICS, Recipe
from qcompiler.runtime import shapes
from qcompiler.runtime.finite import refuse_not_finite
from qcompiler.runtime.memory import return_freed_memory
from qcompiler.statistics import ranges
from qcompiler.statistics.observe import Observations, observe
from qcompiler.statistics.points import Points
from qcompiler.support.atomic import check_writable
from qcompiler.support.progress import Progress
from qcompiler.target import DType, Target, require_fp8
from qcompiler.verification.compare import Verification
from qcompiler.verification.compare import verify as compare
from qcompiler.verification.equivalence import Equivalence
from qcompiler.verification.gates import Gates
from qcompiler.verification.held_out import chosen_metric, evaluation
from qcompiler.verification.metric import check_metric, score_by
from qcompiler.verification.perplexity import Perplexity
from qcompiler.weight_only import methods
from qcompiler.weight_only.methods import PRECISIONS, Rounded, round_weights, work_of
from qcompiler.weight_only.storable import WeightOnlyOptions

if TYPE_CHECKING:
    from qcompiler.engines.audit import Audit
    from qcompiler.outliers.qfep.find import Front


KEPT_FEEDS = 16  # samples that outlive the data run, for the safety net, the ranges and the comparison
RANGE_FEEDS = 4
STEP_DB = 3.0  # how much closer to float the next try aims where a gate was missed
MOST_DB = 60.0


@dataclass
class Run:
    """What accumulates while a model is compiled."""

    recipe: Recipe
    target: Target
    progress: Progress
    timings: dict[str, float] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)
    equivalence: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    released: dict[str, str] = field(default_factory=dict)
    metric: str | Perplexity | None = None
    float_score: float | None = None  # of the metric; the float model stays the same whatever is tried
    held_out: Text | None = None

    @contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
        """Times a stage and shows it; yields the function that advances it."""
        started = time.perf_counter()
        with self.progress.stage(name, total) as shown:
            yield shown.advance
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - started

    @property
    def scope(self) -> Scope:
        """Which layers may be quantized."""
        return Scope(
            self.target,
            self.recipe.keep,
            bool(self.recipe.formats()) or dynamic.splits(self.recipe.precision, self.recipe.llm_int8),
        )

    @property
    def watch(self) -> Watch:
        """Which tensors will be asked about."""
        return Watch(self.target, self.recipe.attention)

    @property
    def gates(self) -> Gates:
        """What the user asks of the comparison."""
        return Gates(self.recipe.min_sqnr, self.recipe.max_drop)

    def told(self, reports: Iterable[Report], errors: Mapping[str, float], warnings: Iterable[str] = ()) -> None:
        """Takes over what a stage has to tell: what its passes did, by how much they moved outputs, and sentences."""
        self.reports.extend(reports)
        self.equivalence.update(errors)
        for text in warnings:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Shows a sentence to the user and keeps it for the manifest."""
        self.warnings.append(text)
        self.progress.warn(text)


def refuse_early(run: Run, data: Data | None, paths: Paths) -> None:
    """What can be known to fail before anything is read."""
    recipe = run.recipe
    run.target = methods.refuse_early(
        recipe.precision, recipe.weight_only, run.target, attention=recipe.attention, data=data is not None
    )
    if recipe.precision in ("fp16", "bf16") and recipe.high_precision not in (None, recipe.precision):
        raise UsageError(
            f"precision '{recipe.precision}' and --high-precision {recipe.high_precision} contradict each other: "
            "leave --high-precision out"
        )
    if recipe.precision in ("fp16", "bf16"):
        run.target = dataclasses.replace(run.target, high_precision=DType(recipe.precision))
    asked = recipe.precision == "fp8" or recipe.precision.startswith("auto:")  # a bare `auto` takes what there is
    if recipe.attention == "fp8" or (asked and DType.FP8 in recipe.formats()):
        require_fp8(run.target)
        if run.target.engine == "onnxruntime":
            run.warn(
                "ONNX Runtime's optimisations break FP8 graphs on the CPU, so they are off: this shows the accuracy of "
                "FP8 and not its speed; for that choose --target tensorrt-rtx"
            )
    if data is None and (recipe.formats() or run.target.high_precision is DType.FP16):
        raise UsageError(
            f"precision '{recipe.precision}' needs the ranges of activations: give --data with real samples "
            "(an .npz, a folder of .npz, or file.py:function), or --data random for a smoke test of the tools"
        )
    if recipe.calibrator != AUTO:
        calibrators.parse(recipe.calibrator)
    if recipe.metric is not None and recipe.metric not in METRICS:
        check_metric(recipe.metric)
    for path in (paths.engine, paths.qdq, paths.manifest, paths.report):
        if path is not None:
            check_writable(path)


def normalise(run: Run, original: models.Model, samples: Source | None) -> models.Model:
    """The float passes, each one behind the equivalence check where there is data to run."""
    model = models.copy(original)
    pipeline = clean_up(run.target, equalize=run.recipe.equalize)
    with run.stage("clean up", len(pipeline.passes)) as advance:
        equal = Equivalence(original, list(islice(samples, 1))) if samples is not None else None

        def after(one: Pass, report: Report) -> None:
            error = equal.check(one, report, model) if equal is not None else None
            if error is not None:
                run.equivalence[report.name] = error
            advance(1)

        reports = pipeline(model.graph, after)
        run.reports.extend(reports)
        shapes.infer(model)
    for report in reports:
        if report.released:
            run.released.update(report.released)
            run.warn(release_quantizers.warning(report.released))
    return model


def preflight(run: Run, engine: Engine, model: models.Model, paths: Paths) -> None:
    """Lets the target's real parser read the float graph before anything long is started."""
    with run.stage("pre-flight"), workshop(paths) as shop:
        path = shop / "preflight.onnx"
        legal = models.copy(model)
        Pipeline(Legalize(run.target), given=NORMAL)(legal.graph)  # a model that came quantized may need repairs
        models.save(legal, path)
        found = engine.check(path)
    if found:
        listed = "; ".join(str(one) for one in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise EngineError(
            f"{run.target.engine} refuses this model: {listed}. Replace or remove the named operators before "
            "compiling, or choose '--target onnxruntime'."
        )


def held_out(run: Run, model: models.Model, data: Data | None, inputs: Inputs) -> None:
    """Finds the text and the metric that float and quantized will be compared by, before anything long is started."""
    if run.recipe.verify_samples:
        run.held_out = evaluation(run.recipe, data, model.graph)
        run.metric = chosen_metric(run.recipe, run.held_out, inputs)
        if run.held_out is not None:
            open_source(run.held_out, inputs, samples=run.recipe.verify_samples)


def runs_of(metric: object) -> int:
    """How often a metric runs both models together; 0 where it does not say."""
    return 2 * int(getattr(metric, "runs", 0))


def described(samples: Source, observed: Observations) -> dict[str, Any]:
    """The calibration data, for the manifest."""
    found = {"name": samples.name, "feeds": observed.feeds, "fingerprint": str(observed.fingerprint)}
    return {**found, **samples.details}


def observe_data(
    run: Run,
    model: models.Model,
    samples: Source | None,
    inputs: Inputs,
    tensors: Sequence[str],
    found: Sequence[Candidate],
) -> Observations:
    """The one run over the data; outliers are looked for in what the candidates read."""
    if samples is None:
        return Observations()
    with run.stage("observe", run.recipe.samples) as advance:
        observed = observe(
            model,
            Points.of(
                histograms=tensors,
                outliers={one.activation: 1 if one.op.startswith("Conv") else -1 for one in found},
            ),
            samples,
            inputs=inputs,
            keep=KEPT_FEEDS,
            workers=run.recipe.workers,
            advance=advance,
        )
    return_freed_memory()
    return observed


def open_stored(normal: models.Model, found: Sequence[Candidate]) -> models.Model:
    """The model with the weights that came quantized as floats, while formats are chosen."""
    weights = tuple(dict.fromkeys(one.weight for one in found if one.scales is not None))
    pairs = tuple(one.node for one in found if one.amax is not None)
    if not weights and not pairs:
        return normal
    opened = models.copy(normal)
    OpenStored(weights, pairs)(opened.graph)
    return opened


def planning_options(recipe: Recipe) -> Planning:
    """What planning may see of a recipe."""
    return Planning(
        formats=recipe.formats(),
        everything=recipe.everything,
        by_cost=recipe.precision.startswith(AUTO),
        calibrator=recipe.calibrator,
        safety=recipe.safety,
        qfem=recipe.qfem,
        min_sqnr=recipe.min_sqnr,
        per_channel=recipe.weight_granularity == "channel",
        clip_weights=recipe.weight_clip == "mse",
        attention=None if recipe.attention == "float" else DType(recipe.attention),
        shapes=recipe.shapes,
    )


def choose_plan(
    run: Run,
    model: models.Model,
    layers: Candidates,
    observed: Observations,
    scores: qfem.Scores = qfem.UNKNOWN,
) -> Chosen:
    """The plan, from the observations; an empty one where there are none. `scores` are those of the last try."""
    options = planning_options(run.recipe)
    if run.recipe.precision == dynamic.PRECISION:
        every = candidates.candidates(model.graph, run.target, run.recipe.keep).refusing(layers.refused)
        return dynamic.make_plan(model, every, observed, options, run.target)
    if not observed.kept:
        return Chosen(Plan(), SafetyNet())
    with run.stage("decide") as advance:
        judge = None if run.metric is None else partial(score_by, run.metric)
        chosen = make_plan(model, layers, observed, options, run.target, advance, judge=judge, scores=scores)
        chosen = dataclasses.replace(chosen, plan=close(chosen.plan, layers.found, run.released))
    models.forget_pages(model)
    return_freed_memory()
    return chosen


def lower(
    run: Run, normal: models.Model, chosen: Chosen, observed: Observations, storing: Sequence[Pass] = ()
) -> tuple[models.Model, Plan]:
    """The plan's graph in the target's types, and the plan with the decisions of the typing."""
    model, plan = models.copy(normal), chosen.plan
    with run.stage("lower"):
        feeds = observed.kept[:RANGE_FEEDS]
        wide = run.target.high_precision is DType.FP32
        seen = ranges.Ranges() if wide or not feeds else ranges.measure(normal, feeds)
        pipeline = lowering(
            chosen.plan, run.target, seen, chosen.corrections, chosen.scales, run.recipe.io_types, storing
        )
        run.reports = [one for one in run.reports if one.name not in {str(p) for p in pipeline.passes}]
        reports = pipeline(model.graph)
        run.reports.extend(reports)
        for report in reports:
            plan = _add_typing(plan, report.decisions)
            for name, why in report.kept.items():
                run.warn(f"'{name}' keeps its type: {why}")
    models.forget_pages(normal)
    return_freed_memory()
    return model, plan


def _add_typing(plan: Plan, decisions: Sequence[Decision]) -> Plan:
    """The plan with what the typing pass decided: quantized nodes stay, the others learn their float type."""
    known = dict(plan.decisions)
    for one in decisions:
        old = known.setdefault(one.node, one)
        if not old.precision.quantized and old.precision is not one.precision:
            known[one.node] = dataclasses.replace(old, precision=one.precision, why=f"{old.why}; {one.why}")
    return plan.with_(decisions=known)


def compare_models(
    run: Run,
    model: models.Model,
    normal: models.Model,
    lowered: models.Model,
    samples: Source | None,
    observed: Observations,
    inputs: Inputs,
    *,
    drift: bool,
    front: Front | None = None,
) -> Verification | None:
    """Float against lowered in ONNX Runtime; None where the recipe or the lack of data says so.

    Other data than the calibration data is read as `front` says, which None leaves as it is.
    """
    recipe = run.recipe
    if samples is None or not recipe.verify_samples:
        return None
    other = recipe.verify_data or run.held_out
    held = open_source(other, inputs, samples=recipe.verify_samples) if other else None
    if held is not None and front is not None:
        held = front.through(held)
    feeds = held if held is not None else observed.kept[: recipe.verify_samples]
    with run.stage("verify", recipe.verify_samples + runs_of(run.metric)) as advance:
        found = compare(
            model,
            lowered,
            feeds,
            samples=recipe.verify_samples,
            metric=run.metric,
            float_score=run.float_score,
            drift=drift,
            inner=normal,
            advance=lambda: advance(1),
        )
    run.float_score = found.score.float_score if found.score else None
    if samples is not None and any(output.float_not_finite for output in found.outputs):
        refuse_not_finite(model, held or samples)
    if held is None:
        found = dataclasses.replace(found, data=f"{samples.name} (calibration data)", random=samples.random)
    return found


def stricter(recipe: Recipe, gates: Gates, verification: Verification | None, chosen: Chosen) -> Recipe | None:
    """The recipe to try next where a gate was missed and more layers can still be given back; None to go on."""
    if not chosen.plan.quantized() or not chosen.plan.quantizers or gates.hold(verification):
        return None
    target = max(recipe.safety.target_sqnr_db, chosen.net.curve[-1].sqnr_db) + STEP_DB
    if target > MOST_DB:
        return None
    return recipe.replace(safety=dataclasses.replace(recipe.safety, target_sqnr_db=target, min_share=0.0))


def warn_where_nothing_is_quantized(run: Run, plan: Plan) -> None:
    """INT8 was asked for: a model that stays float must not look like a success."""
    if not (run.recipe.formats() or run.recipe.precision == dynamic.PRECISION) or plan.quantized():
        return
    rules = Counter(decision.rule for decision in plan if decision.op in LINEAR)
    why = f", mostly by rule '{rules.most_common(1)[0][0]}'" if rules else ": it has no Conv, Gemm or MatMul"
    run.warn(f"nothing in this model was quantized{why}; the plan in the manifest has a reason for every node")


def profiles_of(
    run: Run, observed: Observations, inputs: Inputs, decoder: decoder_io.Decoder | None = None
) -> list[Profile]:
    """One profile: the user's shapes, else what the data showed; two for a decoder with a cache, prefill and decode."""
    if run.recipe.shapes is not None:
        return [Profile(run.recipe.shapes)]
    seen = observed.shapes.profiles(inputs) if observed.feeds else {}
    if decoder is not None and decoder.pairs and not decoder.unknown:
        asked = run.recipe.generation
        tokens = seen.get(decoder_io.TOKENS)
        batch, prompt, longest = decoder_io.lengths(tokens, asked.batch, asked.prompt, asked.max_length)
        if asked.max_length is None:
            run.warn(f"the engine takes texts of up to {longest} tokens, as in the data: --max-length asks for more")
        phases = decoder.profiles(batch, prompt, longest)
        if batch[2] == 1 and methods.needs_rows(run.recipe.precision, run.target):
            phases[1] = decoder.profiles((1, 1, 2), prompt, longest)[1]
        return [Profile(one) for one in (phases[:1] if asked.phases == "one" else phases)]
    return [Profile({name: (three.min, three.opt, three.max) for name, three in seen.items()})] if seen else []


def build_engine(run: Run, engine: Engine, model: Path, output: Path, profiles: Sequence[Profile]) -> EngineFile:
    """Lets the back-end build; its warnings become ours."""
    done = 0.0
    with run.stage("build", 1.0) as advance:

        def show(_: str, share: float) -> None:
            nonlocal done
            advance(max(share - done, 0.0))
            done = max(share, done)

        built = engine.build(model, output, profiles, progress=show)
    for text in built.warnings:
        run.warn(f"{engine.name}: {text}")
    return built


def audit_engine(run: Run, engine: Path, model: Path, plan: Plan) -> Audit | None:
    """Holds the engine's own listing against the plan; only TensorRT-RTX writes one."""
    if run.target.engine != "tensorrt-rtx":
        return None
    from qcompiler.engines.audit import audit

    with run.stage("audit"):
        found = audit(engine, model, {decision.node: decision.precision for decision in plan})
    for finding in found.mismatches:
        run.warn(f"fusion audit: {finding.kind}: {finding.node}: {finding.text}")
    if found.mismatches and run.recipe.strict:
        raise EngineError(
            f"the engine does not keep {len(found.mismatches)} promise(s) of the plan: {found.mismatches[0].text} "
            "Keep the named nodes in high precision with --keep, or build without --strict to get a warning instead."
        )
    return found


def readers(found: Sequence[Candidate]) -> dict[str, list[str]]:
    """Names of the candidates that read each activation."""
    return {name: [one.node for one in members] for name, members in candidates.by_activation(found).items()}


def llm_int8_stage(run: Run, normal: models.Model, layers: Candidates, observed: Observations) -> Apart:
    """The stage: what `split_outliers` makes of the model; as given where it is off or nothing is to be quantized."""
    recipe, formats = run.recipe, run.recipe.formats()
    by_row = dynamic.splits(recipe.precision, recipe.llm_int8)
    if recipe.llm_int8.threshold == "off" or not (formats or by_row) or not observed.kept:
        return Apart(normal, layers, observed)
    dtype = DType.INT8 if by_row or DType.INT8 in formats else DType.FP8
    options = LlmInt8Options(recipe.llm_int8, dtype, by_row)
    with run.stage("llm-int8"):
        done = split_outliers(normal, layers, observed, options, run.scope, run.watch.tensors)
    run.told(done.reports, done.errors)
    if done.model is not normal:
        models.forget_pages(normal)
    return done


def qfep_stage(
    run: Run, model: models.Model, normal: models.Model, samples: Source | None, found: Sequence[Candidate]
) -> Behind:
    """The stage: what `put_in_front` makes of the model; all as given if it is off or there is no data."""
    recipe = run.recipe
    if recipe.qfep.prefix == "off" or samples is None:
        return Behind(model, normal, samples)
    asked = QfepOptions(recipe.qfep, recipe.text.tokenizer, bool(recipe.formats()))
    with run.stage("qfep", 1.0) as advance:
        behind = put_in_front(model, normal, samples, found, asked, advance)
    run.told(behind.reports, behind.errors, behind.warnings)
    return_freed_memory()
    return behind


def smooth(run: Run, normal: models.Model, found: Sequence[Candidate], observed: Observations) -> Smoothed:
    """The stage: what `fold_outliers` makes of the model; as given where smoothing is off or there is nothing to do."""
    recipe, formats = run.recipe, run.recipe.formats()
    if not formats or not smoothable(found, observed, recipe.smooth_quant):
        return Smoothed(normal, observed)
    dtype = DType.INT8 if DType.INT8 in formats else DType.FP8
    fine = recipe.weight_granularity == "channel" if dtype is DType.INT8 else run.target.fp8_per_channel
    options = SmoothQuantOptions(recipe.smooth_quant, recipe.qfem, dtype, recipe.calibrator, fine)
    with run.stage("smooth"):
        done = fold_outliers(normal, found, observed, options, run.scope, run.watch.tensors)
    run.told(done.reports, done.errors)
    models.forget_pages(normal)
    return_freed_memory()
    return done


def weight_only_stage(run: Run, normal: models.Model, samples: Source | None, observed: Observations) -> Rounded:
    """The stage: what `round_weights` makes of the model; as given where it was not asked for."""
    recipe = run.recipe
    if recipe.precision not in PRECISIONS:
        return Rounded(normal)
    if samples is None:
        run.warn(
            "no --data: weights are rounded by themselves, and nothing compares the result with the float model; "
            "with data, --weight-method gptq errs less"
        )
    options = WeightOnlyOptions(recipe.precision, recipe.weight_only, run.target, recipe.keep)
    work = work_of(normal, options, feeds=None if samples is None else observed.feeds)
    with run.stage("weights", work.steps or 1) as advance:
        done = round_weights(normal, work, samples, observed, advance)
    run.told(done.reports, done.errors)
    models.forget_pages(normal)
    return_freed_memory()
    return done
