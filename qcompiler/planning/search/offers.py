"""What came quantized, while formats are chosen: scales and ranges that stay, and what the plan and the user are told.

Weights are opened to floats meanwhile (`legalize.open_stored`). A layer that ends with a float activation keeps its
weight stored as INT8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qcompiler.calibrators.auto import AUTO, offered
from qcompiler.calibrators.headroom import Headroom
from qcompiler.ir import model as models
from qcompiler.passes.legalize.open_stored import OpenStored
from qcompiler.plan import Candidate, FittedWeight
from qcompiler.planning.simulation.simulator import Use
from qcompiler.statistics.histogram import Histogram
from qcompiler.target import DType, Target, lacking_fp8

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WORTH = 1.05  # less clips next to nothing: half a decibel of resolution


def opened(model: models.Model, found: Sequence[Candidate]) -> models.Model:
    """The model with the weights that came quantized as floats, while formats are chosen; itself where none did."""
    weights = tuple(dict.fromkeys(one.weight for one in found if one.scales is not None))
    pairs = tuple(one.node for one in found if one.amax is not None)
    if not weights and not pairs:
        return model
    after = models.copy(model)
    OpenStored(weights, pairs)(after.graph)
    return after


def given_scales(found: Sequence[Candidate], *, per_channel: bool) -> dict[str, NDArray[np.float32]]:
    """Scales of weights that came stored, by node name; without those per channel where a single one is asked for."""
    return {one.node: one.scales for one in found if one.scales is not None and (per_channel or one.scales.ndim == 0)}


def fitted_weights(found: Sequence[Candidate]) -> dict[str, FittedWeight]:
    """The INT8 weights that are not the nearest integers, by node name."""
    return {one.node: one.fitted for one in found if one.fitted is not None}


def pin(
    ranges: dict[str, list[float]], spelled: dict[str, list[str]], groups: Mapping[str, Sequence[Candidate]]
) -> None:
    """Leaves the range of the pair that a tensor came with, or that the user gave, as the only one to choose from."""
    for name, members in groups.items():
        amax = next((one.amax for one in members if one.amax is not None), members[0].known)
        if amax is not None:
            ranges[name], spelled[name] = [amax], ["given"]


def _add_headroom(
    ranges: dict[str, list[float]],
    spelled: dict[str, list[str]],
    histograms: Mapping[str, Histogram],
    louder: Mapping[str, float],
) -> None:
    """Room for what other samples showed, and as much again; nothing where no tensor has shown more than `WORTH`."""
    if max(louder.values(), default=1.0) < WORTH:
        return
    for name, histogram in histograms.items():
        times = max(louder.get(name, 1.0), 1.0)
        for one in (Headroom(round(times, 3)), Headroom(round(times**2, 3))):
            ranges[name].append(one.range(histogram))
            spelled[name].append(str(one))


def offered_uses(
    formats: tuple[DType, ...],
    calibrator: str,
    target: Target,
    groups: Mapping[str, Sequence[Candidate]],
    histograms: Mapping[str, Histogram],
    louder: Mapping[str, float] | None = None,
) -> tuple[dict[str, list[Use]], dict[str, dict[Use, str]]]:
    """Formats and ranges to choose from by activation, and the calibrator behind each; INT8 only for what came so.

    Args:
        formats: that layers may get.
        calibrator: text form, or `auto` for several.
        target: what it lacks is not offered.
        groups: candidates by the activation that they share.
        histograms: of the activations.
        louder: how many times louder than in these other samples were; `auto` then offers room for them.
    """
    if lacking_fp8(target) and len(formats) > 1:
        formats = tuple(dtype for dtype in formats if dtype is not DType.FP8)
    fixed = {
        name for name, members in groups.items() if any(c.scales is not None or c.amax is not None for c in members)
    }
    offers: dict[str, list[Use]] = {name: [] for name in groups}
    spelled: dict[str, dict[Use, str]] = {name: {} for name in groups}
    for dtype in dict.fromkeys([*formats, *([DType.INT8] if fixed else [])]):
        own = {name: members for name, members in groups.items() if name in fixed or dtype in formats}
        own = {name: members for name, members in own.items() if name not in fixed or dtype is DType.INT8}
        free = {name: histograms[name] for name, members in own.items() if members[0].known is None}
        ranges, texts = offered(calibrator, free, dtype)
        if calibrator == AUTO and louder and dtype is DType.INT8:
            _add_headroom(ranges, texts, free, louder)
        pin(ranges, texts, own)
        for name in own:
            for amax, text in zip(ranges[name], texts[name], strict=True):
                offers[name].append(Use(dtype, amax))
                spelled[name].setdefault(Use(dtype, amax), text)
    return offers, spelled
