"""The stage that makes a model normal: float passes, each behind the equivalence check."""

from __future__ import annotations

from itertools import islice

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.subject import Subject
from qcompiler.ir import model as models
from qcompiler.passes import pipelines
from qcompiler.passes.base import Pass, Report
from qcompiler.passes.legalize.release_quantizers import warning
from qcompiler.runtime import shapes
from qcompiler.target import Target
from qcompiler.verification.equivalence import Equivalence


@stage()
def clean_up(run: Compilation, subject: Subject, target: Target, equalize: bool) -> Done[Subject]:
    """The model after the float passes; compared with itself on one sample behind each, where there is data.

    Args:
        subject: as it was loaded.
        target: what the passes must know of the machine.
        equalize: balance the weight ranges of neighbouring convolutions too.

    Raises:
        EquivalenceError: a pass changed what the model computes.
        ModelError: the model gives a value that is not finite.
    """
    model = models.copy(subject.model)
    pipeline = pipelines.clean_up(target, equalize=equalize)
    errors: list[float | None] = []
    with run.working(len(pipeline.passes)) as advance:
        feeds = None if subject.samples is None else list(islice(subject.samples, 1))
        equal = None if feeds is None else Equivalence(subject.model, feeds)

        def after(one: Pass, report: Report) -> None:
            errors.append(None if equal is None else equal.check(one, report, model))
            advance(1)

        reports = pipeline(model.graph, after)
        shapes.infer(model)
    for report in reports:
        if report.released:
            run.warn(warning(report.released))
    released = {name: why for report in reports for name, why in report.released.items()}
    return Done(subject.editing(model, released=released), passes=tuple(zip(reports, errors, strict=True)))
