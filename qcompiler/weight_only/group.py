"""The layers that read one activation, rounded together: what `support.each` does for every group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qcompiler.statistics.hessian import Moments
from qcompiler.weight_only import choice
from qcompiler.weight_only.choice import Layer, RoundedWeight, Settings, Way
from qcompiler.weight_only.row_trials import RowTrials


@dataclass(frozen=True, eq=False)
class Group:
    """Layers that read one activation.

    Attributes:
        layers: by name.
        ways: the ways to choose among, by name.
        moments: of the activation, one of each fold; empty where no Hessian is needed.
        seen: rows of the activation; None without data.
    """

    layers: Mapping[str, Layer]
    ways: Mapping[str, tuple[Way, ...]]
    moments: tuple[Moments, ...]
    seen: RowTrials | None


class Rounder:
    """Rounds groups: the work of `support.each`, begun with what is asked of all layers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, group: Group) -> dict[str, RoundedWeight]:
        """Every layer of the group, by name."""
        fitted = [name for name in group.layers if Way.GPTQ in group.ways[name]]
        shrunk: dict[int | None, choice.Shrunk] = {}
        for size in dict.fromkeys(group.layers[name].size for name in fitted):
            assert group.seen is not None  # else GPTQ is not offered
            alike = {name: group.layers[name] for name in fitted if group.layers[name].size == size}
            shrunk[size] = choice.shrunk(alike, group.moments, group.seen, self._settings)
        found = {}
        for name, layer in group.layers.items():
            known = (shrunk[layer.size], name) if name in fitted else None
            found[name] = choice.choose(layer, group.ways[name], group.seen, known, self._settings)
        return found
