"""What all layers quantized reach, in the best of the ranges on offer."""

from __future__ import annotations

from qcompiler.ir import model as models
from qcompiler.outliers.smooth_quant.measured import RANGES, RANGES_FP8, measure, ranges_of
from qcompiler.planning.placement.scope import Scope
from qcompiler.statistics.observe import histograms
from qcompiler.target import DType, parse_target
from tests.kit import glu
from tests.kit.rewrite import to_graph

FEEDS = glu.feeds(3)


def reached(**options: object) -> tuple[float, int]:
    model = models.Model(to_graph(glu.stack(layers=1)), {}, None, 10)
    found = list(Scope(parse_target("tensorrt-rtx")).layers(model).found)
    seen = histograms(model, [one.activation for one in found], FEEDS)
    asked: dict[str, object] = {"dtype": DType.INT8, "calibrator": "auto", "per_channel": True, **options}
    return measure(model, found, seen, FEEDS[:2], fitted=FEEDS[2:], **asked)  # type: ignore[arg-type]


def test_every_range_is_run_and_the_best_counts() -> None:
    best, runs = reached()
    each = [reached(calibrator=text)[0] for text in RANGES]
    assert best == max(each)
    assert runs == 2 * (1 + len(RANGES))


def test_a_likelihood_is_told_in_its_own_dB() -> None:  # noqa: N802
    assert reached(likelihood=True)[0] != reached()[0]


def test_each_format_has_ranges_of_its_own() -> None:
    assert ranges_of(DType.INT8) == RANGES
    assert ranges_of(DType.FP8) == RANGES_FP8
