"""Weights in few bits, activations as they are: what is refused early, the stage itself, and its part of the lowering.

`weight_layers` says which products are stored and in which form, `weight_scaling` folds AWQ's scaling into the model,
`weight_rounding` rounds, `weight_records` tells plan and manifest, `weight_gates` gives layers back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from qcompiler import decide, hessian, record, weight_layers, weight_scaling
from qcompiler import model as models
from qcompiler.errors import EngineError, UsageError
from qcompiler.macs import concrete_shapes
from qcompiler.pass_ import Pass
from qcompiler.passes.matmul_nbits import MatmulNbits
from qcompiler.passes.weight_only import WeightOnly
from qcompiler.recipe import Recipe
from qcompiler.session import return_freed_memory
from qcompiler.stored_weights import Stored, Weight
from qcompiler.target import DType, Target
from qcompiler.weight_rounding import Rounding, watched

if TYPE_CHECKING:
    from qcompiler.data import Source
    from qcompiler.observe import Observations
    from qcompiler.stages import Run

PRECISIONS = ("int8-weight", "int4-weight")
FIRST_INT4_SM = 80
FIRST_OPSET = 21  # of blocks and INT4


def refuse_early(recipe: Recipe, target: Target, data: bool) -> Target:
    """What can be known to fail before anything is read; returns the target with the opset that blocks need.

    Raises:
        UsageError: the recipe asks for what does not go together, or for data that is not there.
        EngineError: a GPU of the target has no INT4.
    """
    if recipe.precision not in PRECISIONS:
        return target
    wanted = recipe.weight_only
    if wanted.storage == "matmulnbits" and recipe.precision != "int4-weight":
        raise UsageError(
            "recipe key 'weight_only.storage' = 'matmulnbits' stores INT4: choose precision int4-weight, or storage "
            "dequantize, which ONNX Runtime fuses by itself"
        )
    if recipe.attention != "float":
        raise UsageError(
            f"recipe key 'attention' = '{recipe.attention}' quantizes activations, which engines miscompile beside "
            f"weights in blocks: choose precision int8 for it, or leave it out with {recipe.precision}"
        )
    if not data and ("awq" in wanted.method or "gptq" in wanted.method):
        raise UsageError(
            f"weight method '{wanted.method}' looks at activations: give --data with real samples, or choose "
            "--weight-method mse or rtn, which need none"
        )
    if not data and target.high_precision is DType.FP16:
        raise UsageError(
            f"precision '{recipe.precision}' leaves activations in FP16, which only their ranges can show to fit: give "
            "--data with real samples, or choose --high-precision fp32 or bf16, which need none (weights alone "
            "are rounded without data by --weight-method mse or rtn)"
        )
    old = [sm for sm in target.sms if recipe.precision == "int4-weight" and int(sm[2:]) < FIRST_INT4_SM]
    if old:
        raise EngineError(
            f"{' and '.join(old)} has no INT4, which begins with sm{FIRST_INT4_SM} (Ampere): choose precision "
            "int8-weight, which every GPU takes, or a newer target"
        )
    return replace(target, opset=max(target.opset, FIRST_OPSET))


def needs_rows(recipe: Recipe, target: Target) -> bool:
    """Whether a profile must allow for more than one row: TensorRT-RTX 1.7 multiplies a single one with no INT8 weight.

    Where it knows that there is but one, it dequantizes the whole weight on every run. INT4 models have INT8 parts.
    """
    return recipe.precision in PRECISIONS and target.engine == "tensorrt-rtx"


def stage(
    run: Run, normal: models.Model, samples: Source | None, observed: Observations
) -> tuple[models.Model, Stored | None]:
    """Rounds the weights; returns the model (with AWQ's scaling folded in) and what was decided, None if not asked."""
    recipe = run.recipe
    if recipe.precision not in PRECISIONS:
        return normal, None
    if samples is None:
        run.warn(
            "no --data: weights are rounded by themselves, and nothing compares the result with the float model; "
            "with data, --weight-method gptq errs less"
        )
    layers, refused = weight_layers.find(normal.graph, run.target, recipe)
    method = chosen_method(recipe, data=samples is not None)
    runs = observed.feeds * len(hessian.batches(watched(layers, method))) if samples is not None else 0
    with run.stage("weights", (len(layers) + runs) or 1) as advance:
        rows = record.rows(normal, {one.activation: -1 for one in layers}, observed.kept)
        scaled, scaling = normal, weight_scaling.Scaling()
        if "awq" in method:
            scaled, scaling = weight_scaling.scale(run, normal, layers, rows, observed, method)
        rounding = Rounding(
            normal,
            scaled,
            weight_layers.find(scaled.graph, run.target, recipe)[0],
            {one.node: one.activation for one in layers},
            rows,
            scaling.scales,
            method,
            half=run.target.high_precision is not DType.FP32,
            damp=recipe.weight_only.damp,
            act_order=recipe.weight_only.act_order,
        )
        found: dict[str, Weight] = {}
        for weight in rounding.round(samples, advance):
            found[weight.layer.node] = weight
            advance(1)
    models.forget_pages(normal)
    return_freed_memory()
    weights = {one.node: found[one.node] for one in layers}
    return scaled, Stored(method, weights, refused, scaling.gains, scaling.left, macs=_macs(normal, observed))


def chosen_method(recipe: Recipe, *, data: bool) -> str:
    """What `auto` stands for; else what was asked for."""
    wanted = recipe.weight_only.method
    if wanted != "auto":
        return wanted
    if not data:
        return "mse"
    return "awq+gptq" if recipe.precision == "int4-weight" else "awq"


def _macs(model: models.Model, observed: Observations) -> Mapping[str, int]:
    if not observed.kept:
        return {}
    graph = model.graph
    return decide.node_macs(graph, concrete_shapes(graph, observed.kept[0], decide.tensors_for_shapes(graph)))


def passes(stored: Stored | None, recipe: Recipe) -> tuple[Pass, ...]:
    """What the lowering has to do for the weights."""
    if stored is None:
        return ()
    join = recipe.weight_only.storage == "matmulnbits"
    joined = (MatmulNbits(recipe.weight_only.accuracy_level),) if join else ()
    return WeightOnly(stored.blocks()), *joined
