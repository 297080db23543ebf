"""The stage that folds outlier channels into weights (SmoothQuant, Xiao et al. 2022)."""

from __future__ import annotations

from qcompiler.compiler.base import Compilation, Done, checked, stage, tell_undone
from qcompiler.compiler.subject import Subject
from qcompiler.ir import model as models
from qcompiler.outliers.smooth_quant import groups, trials
from qcompiler.planning.search.watch import Watch
from qcompiler.runtime.memory import return_freed_memory


@stage()
def smooth_quant(
    run: Compilation, subject: Subject, watch: Watch, options: trials.SmoothQuantOptions | None, strict: bool = False
) -> Done[Subject]:
    """The subject with alphas chosen and folded; as given where smoothing is off or nothing can be smoothed.

    Args:
        subject: normal and observed.
        watch: which tensors will be asked about; what has changed of them is measured again.
        options: what is asked for; None where activations stay float.
        strict: smoothing that is undone is an error.

    Raises:
        EquivalenceError: strict, and the smoothed model does not compute what the model computes.
    """
    found = subject.layers.found
    if options is None or not trials.smoothable(found, subject.seen, options.table):
        return Done(subject, {"smooth_quant": None})
    with run.working():
        done = trials.fold_outliers(subject.model, found, subject.seen, options, subject.scope, watch.tensors)
    tell_undone(run, done.reports, strict=strict)
    models.forget_pages(subject.model)
    return_freed_memory()
    after = subject.editing(done.model, seen=done.observed) if done.groups else subject
    return Done(after, {"smooth_quant": groups.record_of(done.groups, done.tried)}, checked(done.reports, done.errors))
