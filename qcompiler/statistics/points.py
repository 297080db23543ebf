"""Which statistic of which tensor is wanted: said before the data is run, so that one run gives all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Pairs = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Points:
    """Names of tensors of the main graph, inputs among them, each once; `a | b` wants what either of them wants.

    Attributes:
        histograms: of |x| (`histogram.Histogram`).
        outliers: channels and tokens that stand out, with the axis of the channels; these tensors get a histogram too.
        rows: recorded rows, with the axis of the channels.
        hessians: sums of x·xᵀ, with the last dimension.
        ranges: smallest and largest value, also of tensors of nested graphs. They are computed inside the graph, and
            no tensor is fetched for them.
        flags: which truth values were seen, of the conditions of Ifs.
    """

    histograms: tuple[str, ...] = ()
    outliers: Pairs = ()
    rows: Pairs = ()
    hessians: Pairs = ()
    ranges: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        histograms: Iterable[str] = (),
        outliers: Mapping[str, int] | None = None,
        rows: Mapping[str, int] | None = None,
        hessians: Mapping[str, int] | None = None,
        ranges: Iterable[str] = (),
        flags: Iterable[str] = (),
    ) -> Points:
        """The same from any names and mappings."""
        return cls(
            tuple(dict.fromkeys(histograms)),
            tuple((outliers or {}).items()),
            tuple((rows or {}).items()),
            tuple((hessians or {}).items()),
            tuple(dict.fromkeys(ranges)),
            tuple(dict.fromkeys(flags)),
        )

    @property
    def counted(self) -> tuple[str, ...]:
        """Tensors that need a histogram, also for another statistic; those asked for as such come first."""
        spiking = (name for name, _ in self.outliers)
        return tuple(dict.fromkeys((*self.histograms, *spiking)))

    @property
    def tensors(self) -> tuple[str, ...]:
        """All tensors that are fetched, each once."""
        others = (name for name, _ in (*self.rows, *self.hessians))
        return tuple(dict.fromkeys((*self.counted, *others, *self.flags)))

    def __or__(self, other: Points) -> Points:
        """What either of the two wants, in the order of the first.

        Raises:
            ValueError: a tensor is wanted along two axes, or with two depths.
        """
        return Points(
            tuple(dict.fromkeys((*self.histograms, *other.histograms))),
            _joined(self.outliers, other.outliers),
            _joined(self.rows, other.rows),
            _joined(self.hessians, other.hessians),
            tuple(dict.fromkeys((*self.ranges, *other.ranges))),
            tuple(dict.fromkeys((*self.flags, *other.flags))),
        )


def _joined(one: Pairs, other: Pairs) -> Pairs:
    found = dict(one)
    for name, number in other:
        if found.setdefault(name, number) != number:
            raise ValueError(f"tensor '{name}' is wanted with {found[name]} and with {number}")
    return tuple(found.items())
