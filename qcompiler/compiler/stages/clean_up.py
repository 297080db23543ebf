"""The stage that makes a model normal: float passes, each behind the equivalence check."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import islice

import onnx_graphsurgeon as gs

from qcompiler.compiler.base import Compilation, Done, stage, tell_undone
from qcompiler.compiler.subject import Subject
from qcompiler.data.files.known_ranges import Span
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.passes import pipelines
from qcompiler.passes.base import Report, Skipped
from qcompiler.passes.channels.equalize_channels import EqualizeChannels
from qcompiler.passes.foreign.write_out_fused import refuse_left
from qcompiler.passes.legalize.release_quantizers import warning
from qcompiler.runtime import shapes
from qcompiler.runtime.finite import overflowing
from qcompiler.runtime.randomness import OLDEST, random_nodes
from qcompiler.statistics.followed import follow
from qcompiler.statistics.unchanged import unchanged
from qcompiler.target import Target
from qcompiler.verification.equivalence import Equivalence, Probes, probes, run_checked

_LOOKED_AT = 8  # samples among which another size of the inputs is looked for
_NAMED = 5  # nodes


@stage(version=2)
def clean_up(run: Compilation, subject: Subject, target: Target, equalize: bool, strict: bool = False) -> Done[Subject]:
    """The model after the float passes; compared with itself behind each, on samples and on made-up feeds.

    Args:
        subject: as it was loaded.
        target: what the passes must know of the machine.
        equalize: balance the weight ranges of neighbouring convolutions too.
        strict: a pass that changes what the model computes is an error; else it is undone.

    Raises:
        EquivalenceError: strict, and a pass changed what the model computes.
        ModelError: the model gives NaN that is not meant so, or an operator of ONNX Runtime's own is left that the
            target does not have.
    """
    pipeline = pipelines.clean_up(target, equalize=equalize)
    drawn = random_nodes(subject.model.graph)
    with run.working(len(pipeline.passes)) as advance:
        samples = [] if subject.samples is None else list(islice(subject.samples, _LOOKED_AT))
        probed = probes(subject.model, subject.inputs, samples)
        equal = Equivalence(subject.model, probed.samples, probed.made) if probed.feeds else None
        _tell(run, subject, drawn, probed, equal)
        model, checked = run_checked(pipeline, subject.model, equal, lambda: advance(1))
        shapes.infer(model)
        ranges = _followed(subject, model, probed)
    reports = [report for report, _ in checked]
    tell_undone(run, reports, strict=strict)
    refuse_left(model.graph, target, reports)
    if equalize:
        _tell_equalized(run, reports)
    for report in reports:
        if report.released:
            run.warn(warning(report.released))
    released = {name: why for report in reports for name, why in report.released.items()}
    record = {
        "equivalence": probed.to_json(),
        "random": [{"node": node.name, "op": node.op} for node in _moving(drawn, equal)],
    }
    scope = dataclasses.replace(subject.scope, ranges=ranges)
    return Done(subject.with_(scope=scope).editing(model, released=released), record, tuple(checked))


def _followed(subject: Subject, model: models.Model, probed: Probes) -> Mapping[str, Span]:
    """What is known of the user's tensors, by the names under which the passes have left their values."""
    known, loaded = subject.scope.ranges, subject.model.graph
    if not known:
        return known
    same = {name: name for name in unchanged(loaded, model.graph)}
    if probed.feeds:
        outer = [tensor.name for tensor in graphs.tensors(loaded) if tensor.name in known]
        same |= follow(loaded, model.graph, list(dict.fromkeys(outer)), (*probed.made, *probed.samples)[0])
    return {name: known[old] for name, old in same.items() if old in known}


def _tell_equalized(run: Compilation, reports: Sequence[Report]) -> None:
    """Warns where what was asked for did nothing."""
    (report,) = (one for one in reports if one.name == EqualizeChannels.name())
    if report.changed or report.undone:
        return
    refused = [note for note in report.notes if isinstance(note, Skipped)]
    why = (
        f"at '{refused[0].node}' {refused[0].text}"
        if refused
        else "no tensor lies between two convolutions, or all are equal"
    )
    run.warn(f"--equalize changed nothing: {why}" + (f", and so on at {len(refused) - 1} more" if refused[1:] else ""))


def _moving(drawn: Sequence[gs.Node], equal: Equivalence | None) -> list[gs.Node]:
    """The nodes whose numbers differ from run to run."""
    return [*drawn, *([] if equal is None or equal.restless is None else [equal.restless])]


def _tell(
    run: Compilation, subject: Subject, drawn: Sequence[gs.Node], probed: Probes, equal: Equivalence | None
) -> None:
    """Warns of what the comparisons of this model cannot be taken for granted by."""
    graph = subject.model.graph
    if drawn:
        listed = ", ".join(f"'{node.name}' ({node.op})" for node in drawn[:_NAMED])
        more = f" and {len(drawn) - _NAMED} more" if len(drawn) > _NAMED else ""
        held = (
            "for every measurement they are held fixed, the same in the float model and in the result; what is written "
            "draws anew in each run"
            if graph.opset >= OLDEST
            else f"below opset {OLDEST} they cannot be held fixed, and every figure has their spread in it"
        )
        run.warn(f"the model draws random numbers, at {listed}{more}: {held}")
    if equal is not None and equal.restless is not None:
        node = equal.restless
        run.warn(
            f"the model is not deterministic: run twice on the same sample it gives other numbers, first at "
            f"'{node.name}' ({node.op}); every figure has their spread in it"
        )
    if equal is None:
        run.warn(f"nothing checks that the float passes keep what the model computes: {probed.why}")
    if probed.samples and equal is not None and equal.infinite:
        node = overflowing(graph, probed.samples[0])
        if node is not None:
            run.warn(
                f"output '{equal.infinite[0]}' of the model has infinite values, which node '{node.name}' ({node.op}) "
                "makes out of numbers: they are compared as equal or not, and left out of every other figure"
            )
