"""The limits a user sets: SQNR, loss of the metric."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.errors import AccuracyError, UsageError
from qcompiler.judge.figures import ViewFigure
from qcompiler.verification.compare import Verification
from qcompiler.verification.remedy import COMPILED_ELSEWHERE


@dataclass(frozen=True, slots=True)
class Gates:
    """What the user asks of a comparison.

    Attributes:
        min_sqnr: the worst view must reach so many dB of SQNR; None: no gate.
        max_drop: the metric may lose so much of the float score, relative (0.01 is 1 %); None: no gate.
        allow_broken: what nobody would ship is accepted all the same.
    """

    min_sqnr: float | None = None
    max_drop: float | None = None
    allow_broken: bool = False

    def hold(self, verification: Verification | None) -> bool:
        """Whether nothing is missed; where nothing was compared, nothing is.

        Raises:
            UsageError: a threshold was given for something that was not measured.
        """
        if verification is None:
            return True
        try:
            self.require(verification)
        except AccuracyError:
            return False
        return True

    def require(self, verification: Verification, advice: str = COMPILED_ELSEWHERE) -> None:
        """Applies the thresholds.

        Args:
            verification: the comparison.
            advice: what can be done about a miss, as whole sentences.

        Raises:
            AccuracyError: the quantized model is not finite where the float model is, or a threshold is missed.
            UsageError: a threshold was given for something that was not measured.
        """
        told = f" {begins}" if (begins := verification.begins) else ""
        where = f"{told} {advice}".rstrip()
        if verification.failures and not self.allow_broken:
            raise AccuracyError(f"the quantized model is broken: {'; '.join(verification.failures)}.{where}")
        if self.min_sqnr is not None:
            _gate_sqnr(verification, self.min_sqnr, where)
        if self.max_drop is not None:
            _gate_drop(verification, self.max_drop, where)


def _gate_sqnr(verification: Verification, least: float, where: str) -> None:
    for view in verification.mismatched:
        if view.role != "ignored":
            raise AccuracyError(
                f"output '{view.output}' has another shape than in the float model in {view.reshaped} of "
                f"{verification.samples} samples, so that --min-sqnr cannot hold it. Judge by a metric "
                f"(--metric, --max-drop), or leave it out with --ignore-output {view.output}."
            )
    worst = verification.worst
    if worst is None or worst.sqnr_db is None:
        raise UsageError(
            "--min-sqnr was given, but the model has no float output to measure: use --metric and --max-drop"
        )
    if worst.sqnr_db < least:
        raise AccuracyError(
            f"{_named(worst)} reaches {worst.sqnr_db:.2f} dB of SQNR and at least {least:g} dB was asked for.{where}"
        )


def _gate_drop(verification: Verification, most: float, where: str) -> None:
    score = verification.score
    if score is None:
        raise UsageError("--max-drop was given, but no metric was measured: give --metric file.py:function")
    change = "drop" if score.higher_is_better else "rise"
    if not score.drop <= most + 1e-9:  # 0.50 to 0.49 is 2 %, also in binary; and NaN must not pass
        raise AccuracyError(
            f"the metric '{score.name}' goes from {score.float_score:.6g} (float) to {score.quantized_score:.6g} "
            f"(quantized), a {change} of {score.drop:.2%} where at most {most:.2%} was allowed.{where}"
        )


def _named(view: ViewFigure) -> str:
    """An output, or what it is made of."""
    return f"output '{view.name}'" if view.tensor == view.output else f"'{view.name}' of output '{view.output}'"
