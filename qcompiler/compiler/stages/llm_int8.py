"""The stage that gives outlier channels a product of their own (LLM.int8(), Dettmers et al. 2022)."""

from __future__ import annotations

from qcompiler.compiler.base import Compilation, Done, checked, stage, tell_undone
from qcompiler.compiler.subject import Subject
from qcompiler.ir import model as models
from qcompiler.outliers.llm_int8 import LlmInt8Options, split_outliers
from qcompiler.planning.search.watch import Watch


@stage()
def llm_int8(
    run: Compilation, subject: Subject, watch: Watch, options: LlmInt8Options | None, strict: bool = False
) -> Done[Subject]:
    """The subject with outlier channels taken out of the quantized products; as given where nobody asked.

    What the manifest says of it is known when the plan is: see *lower*.

    Args:
        subject: normal, observed, smoothed.
        watch: which tensors will be asked about; those that are new are measured.
        options: what is asked for; None where it is off.
        strict: an edit that is undone is an error.

    Raises:
        EquivalenceError: strict, and the edited model does not compute what the model computes.
    """
    if options is None or not subject.seen.kept:
        return Done(subject, {"llm_int8": None})
    with run.working():
        done = split_outliers(subject.model, subject.layers, subject.seen, options, subject.scope, watch.tensors)
    tell_undone(run, done.reports, strict=strict)
    if done.model is not subject.model:
        models.forget_pages(subject.model)
    after = subject.with_(model=done.model, layers=done.layers, seen=done.observed, splits=done.splits)
    return Done(after, {"llm_int8": None}, checked(done.reports, done.errors))
