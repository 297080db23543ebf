"""The stage that compares what the user's metric feeds with what ranges were taken from."""

from __future__ import annotations

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.subject import Subject
from qcompiler.data import lacks
from qcompiler.data.alike import differences
from qcompiler.ir import decoder_io
from qcompiler.verification.compare import Verification

CALIBRATION = "calibration data"
METRIC = "data of the metric"


@stage(kept=False)
def check_metric_data(run: Compilation, subject: Subject, verification: Verification | None) -> Done[None]:
    """Warnings where they were not prepared alike.

    Args:
        subject: observed.
        verification: with the score, whose feeds were watched; None where nothing was compared.
    """
    score = None if verification is None else verification.score
    if score is None or not score.fed or subject.samples is None or subject.samples.random:
        return Done(None)
    for text in lacks.ids(score.fed, decoder_io.looked_up(subject.reference.graph), METRIC):
        run.warn(text)
    for text in differences(subject.seen.spreads.found(), score.fed, CALIBRATION, METRIC):
        run.warn(text)
    return Done(None, {"inputs": {"metric": {name: one.to_json() for name, one in score.fed.items()}}})
