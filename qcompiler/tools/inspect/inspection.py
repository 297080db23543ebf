"""`inspect()`: what is in a model, what can be quantized for a target and what cannot and why, and where it spikes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from qcompiler.data import find_batch
from qcompiler.data.batches import NO_BATCH, BatchAxes
from qcompiler.data.source import Data, Source, open_source, prepared, suited
from qcompiler.errors import ModelError, QCompilerError
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.macs import countable, uncounted
from qcompiler.ir.signature import inputs_of
from qcompiler.passes.fixed import fixed, fixed_by
from qcompiler.passes.importing import imported
from qcompiler.passes.known_part import known_part
from qcompiler.passes.pipelines import clean_up
from qcompiler.planning.placement import candidates
from qcompiler.recipe.recipe import Recipe
from qcompiler.runtime import shapes
from qcompiler.statistics.residual import Residual
from qcompiler.support.as_json import plain
from qcompiler.support.progress import Progress, silent
from qcompiler.target import Target
from qcompiler.tools.inspect import inventory
from qcompiler.tools.inspect.activations import Spike, Watched, watch
from qcompiler.tools.inspect.layers import InspectedLayer, by_rule, judged, known_shapes, record, served_shapes
from qcompiler.verification.reading import read


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        file: the model's file name.
        producer: what wrote it; empty where it does not say.
        opset: version of the standard operators.
        ir_version: version of the file format.
        inputs: name → (element type, shape with names or None for what is open).
        outputs: the same.
        parameters: elements of all weights; integer constants such as shapes are not counted.
        weights: bytes of the weights by element type.
        operators: how often each operator occurs, nested graphs included, most frequent first.
        custom: operators of other domains, as `domain::op`, with their counts.
        control_flow: nodes of the main graph with graphs of their own, as `name (op)`, and how many are inside them.
        quantized: operators of an earlier quantization, with their counts.
        target: what "can be quantized" refers to.
        layers: nodes that multiply, in graph order.
        macs: multiply-accumulates of one sample; None where those of some layer are not known.
        data: name of the data, and how many feeds were run; empty without.
        spikes: activations of the layers that can be quantized, the worst first; empty without data.
        residuals: the ranges at residual Adds, in graph order; empty without data.
        overflow: where the float model stops being finite; empty where it does not.
        problems: what could not be looked at, and why.
    """

    file: str
    producer: str
    opset: int
    ir_version: int
    inputs: Mapping[str, inventory.Value]
    outputs: Mapping[str, inventory.Value]
    parameters: int
    weights: Mapping[str, int]
    operators: Mapping[str, int]
    custom: Mapping[str, int]
    control_flow: tuple[str, ...]
    quantized: Mapping[str, int]
    target: str
    layers: tuple[InspectedLayer, ...]
    macs: int | None
    data: str = ""
    spikes: tuple[Spike, ...] = ()
    residuals: tuple[Residual, ...] = ()
    overflow: str = ""
    problems: tuple[str, ...] = field(default=())

    @property
    def quantizable(self) -> float | None:
        """Share of the multiply-accumulates that can be quantized, 0..1; None where they are not known."""
        if not self.macs:
            return None
        return sum(layer.macs or 0 for layer in self.layers if layer.quantizable) / self.macs

    def to_json(self) -> dict[str, Any]:
        """Single figures first, then tables as lists of records; what a model does not have is left out.

        Layers with most multiply-accumulates come first.
        """
        figures = {
            "file": self.file,
            "producer": self.producer,
            "opset": self.opset,
            "ir_version": self.ir_version,
            "parameters": self.parameters,
            "weight_bytes": self.weights,
            "operators": self.operators,
            "custom_operators": self.custom,
            "control_flow": self.control_flow,
            "quantized_already": self.quantized,
            "target": self.target,
            "layers_that_can_be_int8": f"{sum(one.quantizable for one in self.layers)} of {len(self.layers)}",
            "macs": self.macs,
            "macs_that_can_be_int8": self.quantizable,
            "data": self.data,
            "not_finite": self.overflow,
            "problems": self.problems,
        }
        tables = {
            "inputs": inventory.table("input", self.inputs),
            "outputs": inventory.table("output", self.outputs),
            "stays_float": list(by_rule(self.layers)),
            "layers": [record(one) for one in sorted(self.layers, key=lambda one: -(one.macs or 0))],
            "spikes": self.spikes,
            "residuals": self.residuals,
        }
        found: dict[str, Any] = plain({**figures, **tables})
        return {key: value for key, value in found.items() if value is not None and value not in ("", [], {})}


def inspect(
    model: str | Path | models.Model,
    *,
    data: Data | None = None,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Looks at a model without changing or quantizing it; with data, also measures its activations.

    Args:
        model: an ONNX file, or a loaded model.
        data: samples to run; without them nothing is run.
        recipe: its target, `keep`, `samples`, `fix_input` and `fix_shape` are used, and its shapes where there is no
            data.
        progress: where stages are shown.

    Raises:
        ModelError: the file cannot be read.
        DataError: the data does not fit the model.
        UsageError: the data is not a form of data.
        EngineError: the recipe's target does not exist.
    """
    recipe, progress = recipe or Recipe(), progress or silent
    target = recipe.resolve()
    problems: list[str] = []
    with progress.stage("load"):
        loaded, _ = fixed(read(model), fixed_by(recipe.fix_input, recipe.fix_shape))
        raw = loaded.graph
        computed = _imported(_known(loaded, problems), problems)
        inputs, source = inputs_of(computed.graph), None
        data = prepared(suited(data, computed.graph), recipe.preprocess)
        if data is not None:
            source = open_source(data, inputs, samples=recipe.samples, batch=recipe.batch, stored=computed.ends)
    with progress.stage("clean_up"):
        clean = _clean(computed, target, problems)
        found, refused = candidates.find_candidates(clean.graph, target, recipe.keep)
        axes = NO_BATCH
        if source is not None:
            axes = find_batch.find(clean.graph, source, inputs, recipe.batch_axis or {})
            source = source.along(axes)
    watched = Watched()
    with progress.stage("measure", recipe.samples if source is not None else None) as stage:
        known, macs = known_shapes(clean.graph, source, axes, recipe, problems)
        if source is not None:
            nodes = {node.name: node for node in clean.graph.nodes}
            groups = {
                name: [nodes[one.node] for one in group] for name, group in candidates.by_activation(found).items()
            }
            watched = _watched(clean.graph, groups, source, axes, problems, stage.advance)
        served = served_shapes(clean.graph, source, watched.shapes, axes, recipe, known)
    total = _total(clean.graph, macs, source, problems)
    layers = judged(clean.graph, found, refused, served, macs, total, recipe)
    return Inspection(
        file=loaded.source.name if loaded.source else "a model in memory",
        producer=" ".join(filter(None, (raw.producer_name, raw.producer_version))),
        opset=int(raw.opset),
        ir_version=loaded.ir_version,
        inputs={tensor.name: inventory.described(tensor) for tensor in raw.inputs},
        outputs={tensor.name: inventory.described(tensor) for tensor in raw.outputs},
        parameters=inventory.parameters(raw),
        weights=inventory.weight_bytes(raw),
        operators=inventory.operators(raw),
        custom=inventory.custom(raw),
        control_flow=inventory.control_flow(raw),
        quantized=inventory.quantizers(raw),
        target=str(target),
        layers=layers,
        macs=total or None,
        data="" if source is None else _data_text(source, watched),
        spikes=tuple(watched.spikes),
        residuals=tuple(watched.residuals),
        overflow=watched.overflow,
        problems=tuple(problems),
    )


def _total(graph: gs.Graph, macs: Mapping[str, int], source: Source | None, problems: list[str]) -> int:
    """All multiply-accumulates; 0 where open shapes hide some of them."""
    missing = uncounted(graph, macs)
    nodes = {node.name: node for node in graphs.walk(graph)}
    if source is None and any(countable(nodes[name]) for name in missing):
        problems.append("some shapes are open, so multiply-accumulates are not known: give --data")
        return 0
    if missing and macs:
        named = ", ".join(f"'{name}' ({nodes[name].op})" for name in missing[:3]) + ", ..." * (len(missing) > 3)
        problems.append(f"shares leave out what nobody can count: {named}")
    return sum(macs.values())


def _imported(model: models.Model, problems: list[str]) -> models.Model:
    """The model in FP32; as it is where it has types that are refused."""
    try:
        return imported(model)
    except ModelError as error:
        problems.append(f"it cannot be compiled: {error}")
        return model


def _known(loaded: models.Model, problems: list[str]) -> models.Model:
    """The part in front of operators that nobody here knows; the whole model where nothing is in front of them."""
    try:
        part = known_part(loaded)
    except ModelError as error:
        problems.append(f"nothing was run, so it is not measured: {error}")
        return loaded
    if part.behind is not None:
        problems.append(part.behind.told())
    return part.model


def _clean(model: models.Model, target: Target, problems: list[str]) -> models.Model:
    """The graph as the compiler would look at it; the model's own where clean-up is refused."""
    clean = models.copy(model)
    try:
        clean_up(target)(clean.graph)
        shapes.infer(clean)
    except QCompilerError as error:
        # Who inspects wants to know what is in the model all the more when it cannot be compiled
        problems.append(f"clean-up stopped, so the rules below look at the model as it is: {error}")
        return models.copy(model)
    return clean


def _watched(
    graph: gs.Graph,
    groups: dict[str, list[gs.Node]],
    source: Source,
    axes: BatchAxes,
    problems: list[str],
    advance: Any,
) -> Watched:
    try:
        return watch(graph, groups, source, axes, advance)
    except ModelError as error:
        problems.append(f"activations were not measured: {error}")
        return Watched()


def _data_text(source: Source, watched: Watched) -> str:
    text = f"{source.name}, {watched.feeds} feed{'s' * (watched.feeds != 1)}"
    return f"{text}; made up, so figures of activations mean nothing" if source.random else text
