"""What is asked of weights in few bits: methods, refusals, the passes that store them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qcompiler.errors import EngineError, UsageError
from qcompiler.ir import model as models
from qcompiler.passes.base import Pass, Report
from qcompiler.passes.quantize.matmul_nbits import MatmulNbits
from qcompiler.passes.quantize.store_tables import StoreTables
from qcompiler.passes.quantize.weight_only import WeightOnly
from qcompiler.plan import Refusal
from qcompiler.recipe.tables import WeightOnlyTable
from qcompiler.runtime.work import count_macs
from qcompiler.statistics import hessian
from qcompiler.statistics.timed import Timed
from qcompiler.support.each import Each, in_turn
from qcompiler.support.foreseen import Foreseen
from qcompiler.target import DType, Target
from qcompiler.weight_only import row_trials, storable
from qcompiler.weight_only.rounding import Rounding, watched
from qcompiler.weight_only.scaling import Scaling, scale
from qcompiler.weight_only.scores import scoring
from qcompiler.weight_only.storable import StorableLayer, WeightOnlyOptions
from qcompiler.weight_only.stored import Stored, StoredWeight

if TYPE_CHECKING:
    from qcompiler.data.source import Source
    from qcompiler.statistics.observe import Observations


PRECISIONS = ("int8-weight", "int4-weight")
FIRST_INT4_SM = 80
FIRST_OPSET = 21  # of blocks and INT4


def refuse_early(precision: str, wanted: WeightOnlyTable, target: Target, *, attention: str, data: bool) -> Target:
    """What can be known to fail before anything is read; returns the target with the opset that blocks need.

    Args:
        precision: the recipe's; with others than weights alone there is nothing to refuse here.
        wanted: the recipe's table.
        target: engine and high precision.
        attention: `float`, or what attention is quantized to.
        data: whether there are samples.

    Raises:
        UsageError: what is asked for does not go together, or needs data that is not there.
        EngineError: a GPU of the target has no INT4.
    """
    if precision not in PRECISIONS:
        return target
    if wanted.storage == "matmulnbits" and precision != "int4-weight":
        raise UsageError(
            "recipe key 'weight_only.storage' = 'matmulnbits' stores INT4: choose precision int4-weight, or storage "
            "dequantize, which ONNX Runtime fuses by itself"
        )
    if attention != "float":
        raise UsageError(
            f"recipe key 'attention' = '{attention}' quantizes activations, which engines miscompile beside "
            f"weights in blocks: choose precision int8 for it, or leave it out with {precision}"
        )
    if not data and ("awq" in wanted.method or "gptq" in wanted.method):
        raise UsageError(
            f"weight method '{wanted.method}' looks at activations: give --data with real samples, or choose "
            "--weight-only-method mse or rtn, which need none"
        )
    if not data and target.high_precision is DType.FP16:
        raise UsageError(
            f"precision '{precision}' leaves activations in FP16, which only their ranges can show to fit: give "
            "--data with real samples, or choose --high-precision fp32 or bf16, which need none (weights alone "
            "are rounded without data by --weight-only-method mse or rtn)"
        )
    old = [sm for sm in target.sms if precision == "int4-weight" and int(sm[2:]) < FIRST_INT4_SM]
    if old:
        raise EngineError(
            f"{' and '.join(old)} has no INT4, which begins with sm{FIRST_INT4_SM} (Ampere): choose precision "
            "int8-weight, which every GPU takes, or a newer target"
        )
    return replace(target, opset=max(target.opset, FIRST_OPSET))


def needs_rows(precision: str, target: Target) -> bool:
    """Whether a profile must allow for more than one row: TensorRT-RTX 1.7 multiplies a single one with no INT8 weight.

    Where it knows that there is but one, it dequantizes the whole weight on every run. INT4 models have INT8 parts.
    """
    return precision in PRECISIONS and target.engine == "tensorrt-rtx"


@dataclass(frozen=True, eq=False)
class Work:
    """What there is to round.

    Attributes:
        options: what is asked for.
        method: how weights are rounded; `auto` where each layer gets what errs least.
        layers: whose weights are stored, in graph order.
        refused: the other linear nodes.
        steps: layers, and runs of the model that Hessians take.
    """

    options: WeightOnlyOptions
    method: str
    layers: tuple[StorableLayer, ...]
    refused: tuple[Refusal, ...]
    steps: int


@dataclass(frozen=True, eq=False)
class Rounded:
    """A model whose weights wait to be stored in few bits.

    Attributes:
        model: with AWQ's scaling folded in; as given where there is none.
        stored: what was decided; None where nothing was asked for.
        reports: of the passes that ran.
        errors: largest relative error of each behind the equivalence check, by its text form.
    """

    model: models.Model
    stored: Stored | None = None
    reports: tuple[Report, ...] = ()
    errors: Mapping[str, float] = field(default_factory=dict)


def work_of(normal: models.Model, options: WeightOnlyOptions, *, feeds: int | None) -> Work:
    """What there is to round in a model.

    Args:
        normal: normalised float model.
        options: what is asked for.
        feeds: how many calibrate; None without data.
    """
    layers, refused = storable.find_storable(normal.graph, options)
    method = chosen_method(options.table, data=feeds is not None)
    runs = feeds * hessian.runs(normal, watched(layers, method)) if feeds is not None else 0
    return Work(options, method, tuple(layers), tuple(refused), len(layers) + runs)


def round_weights(
    normal: models.Model,
    work: Work,
    samples: Source | None,
    observed: Observations,
    advance: Callable[[float], None] = lambda steps: None,
    each: Each = in_turn,
) -> Rounded:
    """Rounds the weight of every layer.

    Args:
        normal: normalised float model.
        work: what there is to round in it.
        samples: the part of the data that calibrates; None without data.
        observed: rows are recorded of its kept samples, to fit to, and of those that are held, to judge by.
        advance: called with the number of steps done since the last call.
        each: who rounds the groups of layers that read one activation.
    """
    options = work.options
    dealt = None if samples is None else row_trials.deal(samples, observed)
    seen = {} if dealt is None else row_trials.record(normal, {one.activation: -1 for one in work.layers}, dealt)
    scaling = Scaling(normal)
    if seen and ("awq" in work.method or work.method == "auto"):
        scaling = scale(normal, work.layers, seen, observed.kept, method=work.method, half=options.half)
    rounding = Rounding(
        normal,
        scaling.model,
        storable.find_storable(scaling.model.graph, options)[0],
        {one.node: one.activation for one in work.layers},
        seen,
        scaling.scales,
        work.method,
        half=options.half,
        damp=options.table.damp,
        act_order=options.table.act_order,
        scoring=scoring(normal.graph, [one.node for one in work.layers]),
    )
    found: dict[str, StoredWeight] = {}
    for weight in rounding.round(dealt, advance, each):
        found[weight.layer.node] = weight
        advance(1)
    weights = {one.node: found[one.node] for one in work.layers}
    macs = _macs(normal, observed)
    tables = storable.find_tables(scaling.model.graph, options)
    stored = Stored(options, work.method, weights, work.refused, scaling.gains, scaling.left, macs=macs, tables=tables)
    return Rounded(scaling.model, stored, scaling.reports, scaling.errors)


def chosen_method(wanted: WeightOnlyTable, *, data: bool) -> str:
    """What was asked for; without data, `auto` stands for `mse`."""
    return "mse" if wanted.method == "auto" and not data else wanted.method


def _macs(model: models.Model, observed: Observations) -> Mapping[str, int]:
    if not observed.kept:
        return {}
    return count_macs(model.graph, observed.kept[0])


def passes(stored: Stored | None) -> tuple[Pass, ...]:
    """What the lowering has to do for the weights."""
    if stored is None:
        return ()
    table = stored.options.table
    joined = (MatmulNbits(table.accuracy_level),) if table.storage == "matmulnbits" else ()
    tables = (StoreTables(stored.twins()),) if stored.tables else ()
    return WeightOnly(stored.blocks()), *tables, *joined


def foreseen(work: Work, model: models.Model, known: Timed) -> Foreseen:
    """What `round_weights` runs, and what it computes, as runs of the model that take as many multiply-accumulates.

    Rows of the samples are recorded to fit to and to judge by. A Hessian of K channels is K² for each row, and each
    column that GPTQ rounds is followed by those behind it: K² / 2 for each output channel.
    """
    runs = Foreseen(runs=work.steps - len(work.layers) + known.kept + known.choosing, sessions=2, copies=2)
    if not watched(work.layers, work.method):
        return runs
    shapes = [(one.depth, one.width) for one in work.layers]
    solved = sum(rows * rows * columns / 2 for rows, columns in shapes)
    squares = sum(rows * rows for rows, _ in shapes)
    per_sample = known.macs / max(sum(rows * columns for rows, columns in shapes), 1)  # rows of a sample
    return runs + Foreseen(runs=(solved + squares * per_sample * known.calibrate) / max(known.macs, 1))
