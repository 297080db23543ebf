"""The front of an earlier compilation, read from its manifest: any of its plans can be made again without a search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from qcompiler.errors import DataError, ModelError, UsageError
from qcompiler.planning.search.front import FrontPoint
from qcompiler.planning.search.goal import DEFAULT, Goal, GoalReached, picked
from qcompiler.planning.search.qfem import NOTHING, Spared
from qcompiler.planning.search.safety_net import SafetyNet
from qcompiler.planning.search.take import Pinned, at_point
from qcompiler.planning.simulation.simulator import Use
from qcompiler.target import DType


@dataclass(frozen=True)
class Recorded:
    """A front, with what it was made for.

    Attributes:
        name: of the manifest, for messages.
        source: SHA-256 of the model's file; None where there was none.
        data: fingerprint of the data.
        net: where the search had ended, with its front.
        spared: what QFeM had decided.
        calibrators: text form of the one that chose a range, by activation tensor.
        rungs: of the ladder, those that were kept; None where nobody wrote them down.
    """

    name: str
    source: str | None
    data: str | None
    net: SafetyNet
    spared: Spared
    calibrators: Mapping[str, str] = field(default_factory=dict)
    rungs: frozenset[str] | None = None

    @classmethod
    def of(cls, manifest: Mapping[str, Any], name: str) -> Self:
        """Reads what a manifest says.

        Raises:
            UsageError: it has no front.
        """
        safety, rows = manifest.get("safety") or {}, manifest.get("front") or []
        if not rows or not safety.get("uses"):
            raise UsageError(
                f"{name} has no front to pick from: it is of a compilation that searched for nothing, or of an older "
                "qcompiler. Compile again without --pick"
            )
        uses = {
            group: {DType(key): Use(DType(one["dtype"]), float(one["amax"])) for key, one in formats.items()}
            for group, formats in safety["uses"].items()
        }
        try:
            front = tuple(_point(row, uses) for row in rows)
        except KeyError as error:
            raise UsageError(f"the front of {name} names {error}, of which it has no range: compile again") from error
        chosen = next((row for row in front if row.chosen), front[0])
        shown = {group: chosen.uses.get(group) or next(iter(formats.values())) for group, formats in uses.items()}
        net = SafetyNet(
            amax={group: use.amax for group, use in shown.items()},
            formats={group: use.dtype for group, use in shown.items()},
            restored=chosen.restored,
            target_db=float(safety.get("target_db") or 0.0),
            alone={
                group: {DType(key): math.inf if one is None else float(one) for key, one in noises.items()}
                for group, noises in (safety.get("alone") or {}).items()
            },
            uses=uses,
            costs=dict(safety.get("costs") or {}),
            front=front,
        )
        words = {row["tensor"]: str(row["calibrator"]) for row in manifest.get("quantizers") or []}
        told = manifest.get("rungs")
        rungs = None if told is None else frozenset(str(one["name"]) for one in told if one.get("kept"))
        source, data = manifest.get("source") or {}, manifest.get("data") or {}
        return cls(
            name, source.get("sha256"), data.get("fingerprint"), net, _spared(manifest.get("qfem")), words, rungs
        )

    def pinned(self, pick: str | float) -> Pinned:
        """The point that the user picks.

        Raises:
            UsageError: there is no point with that id.
        """
        at = picked(self.net.front, pick)
        net = at_point(self.net, at)
        why = f"point {at} of the front of {self.name}, picked: {pick}"
        return Pinned(
            net, self.spared, GoalReached(Goal(DEFAULT, net.target_db), None, why), self.calibrators, self.rungs
        )

    def refuse_other_model(self, sha256: str | None) -> None:
        """Raises `ModelError` where the front is of another model."""
        if sha256 is not None and self.source is not None and sha256 != self.source:
            raise ModelError(
                f"the front of {self.name} is of another model file (SHA-256 {self.source[:12]}..., this one has "
                f"{sha256[:12]}...): its ranges do not fit. Compile this model without --pick, or give that one"
            )

    def refuse_other_data(self, fingerprint: str) -> None:
        """Raises `DataError` where the front is of other data."""
        if self.data is not None and fingerprint != self.data:
            raise DataError(
                f"the front of {self.name} was made with other data (fingerprint {self.data[:12]}..., this one has "
                f"{fingerprint[:12]}...): give the same --data and --samples, or compile without --pick"
            )


def _point(row: Mapping[str, Any], uses: Mapping[str, Mapping[DType, Use]]) -> FrontPoint:
    sqnr_db = row["sqnr_db"]
    return FrontPoint(
        share=float(row["share"]),
        sqnr_db=math.inf if sqnr_db is None else float(sqnr_db),
        seconds=row.get("predicted_s"),
        restored=tuple(row["high"]),
        uses={group: uses[group][DType(key)] for group, key in row["formats"].items()},
        measured=bool(row["measured"]),
        chosen=bool(row["chosen"]),
        size=row.get("bytes"),
    )


def _spared(record: Mapping[str, Any] | None) -> Spared:
    if not record or not record.get("chosen"):
        return NOTHING
    ratios = {row["tensor"]: float(row["ratio"]) for row in record["chosen"]}
    return Spared(record.get("alpha"), str(record.get("rule", "")), ratios, tuple(ratios))
