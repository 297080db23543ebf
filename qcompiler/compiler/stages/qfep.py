"""The stage of QFeP: finds the prefix, proves it, puts it into the float model, and lets texts be read accordingly.

It stands before the data is observed, so that ranges, smoothing and QFeM see the model as it will run. What it looks at
itself are a few samples: how single tokens stand out in front of it and behind it.
"""

from __future__ import annotations

from qcompiler.compiler.base import Compilation, Done, checked, stage, tell_undone
from qcompiler.compiler.subject import Subject
from qcompiler.outliers.qfep import find
from qcompiler.runtime.memory import return_freed_memory
from qcompiler.statistics.timed import Timed
from qcompiler.support.foreseen import NOTHING, Foreseen


@stage()
def qfep(run: Compilation, subject: Subject, options: find.QfepOptions | None, strict: bool = False) -> Done[Subject]:
    """The subject behind a prefix; as given where nobody asked or there is no data.

    Args:
        subject: normal.
        options: what is asked for; None where it is off.
        strict: a prefix that is undone is an error.

    Raises:
        ModelError: a prefix was given that cannot be put in front of this model.
        UsageError: it is to be left to the caller, and the model has no cache to give it by.
        EquivalenceError: strict, and the model with the prefix does not compute what it computes for [prefix + text].
    """
    if options is None or subject.samples is None or subject.parts is None:
        return Done(subject, {"qfep": None})
    with run.working(1.0) as advance:
        behind = find.put_in_front(
            subject.reference, subject.model, subject.parts.calibrate, subject.layers.found, options, advance
        )
    return_freed_memory()
    tell_undone(run, behind.reports, strict=strict)
    for text in behind.warnings:
        run.warn(text)
    after = subject.with_(reference=behind.reference, prefix=behind.done)
    if behind.front is not None:
        through = behind.front.through
        after = after.with_(samples=through(subject.samples), parts=subject.parts.through(through))
    if behind.model is not subject.model:
        after = after.editing(behind.model)
    return Done(after, {"qfep": find.record_of(behind.done)}, checked(behind.reports, behind.errors))


def foreseen(known: Timed, options: find.QfepOptions | None) -> Foreseen:
    """What the search for a prefix, or the proof of the one that was given, runs."""
    return NOTHING if options is None else find.foreseen(known, options)
