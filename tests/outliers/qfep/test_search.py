"""The search for a prefix: what is nominated, what is judged, and when nothing is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompiler.ir.model import Model
from qcompiler.outliers.qfep import search
from qcompiler.planning.placement import candidates
from qcompiler.target import parse_target
from tests.kit import decoder, glu
from tests.kit.rewrite import to_graph

Row = NDArray[np.int64]


class Fake(search.Meter):
    """A model whose tokens spike where they occur first: token 7 at one layer, 9 at another, any token at the front."""

    spikes: ClassVar[dict[str, dict[int, float]]] = {"early": {7: 900.0}, "late": {9: 400.0}, "calm": {}}
    front = 500.0

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        self.names = list(names)

    def peaks(self, rows: Sequence[Row], front: Sequence[int] = ()) -> dict[str, NDArray[np.float32]]:
        found = {name: np.ones((len(rows), len(rows[0])), np.float32) for name in self.names}
        for name, values in found.items():
            for number, row in enumerate(rows):
                whole = [*front, *row.tolist()]
                for at, token in enumerate(whole):
                    new = token not in whole[:at]
                    high = self.spikes[name].get(token, 1.0) if new else 1.0
                    high = max(high, self.front if at == 0 and name == "early" else 1.0)
                    if at >= len(front):
                        values[number, at - len(front)] = high
        return found


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(search, "Meter", Fake)
    return list(Fake.spikes)


def _texts(count: int = 5, *, bos: int | None = None) -> list[Row]:
    rng = np.random.default_rng(0)
    rows = [np.concatenate([rng.integers(20, 40, 30), [9, 7, 9, 7], rng.integers(20, 40, 9)]) for _ in range(count)]
    return rows if bos is None else [np.concatenate([[bos], row]) for row in rows]


def test_the_prefix_has_every_token_that_spikes_first(fake: list[str]) -> None:
    found = search.find_prefix(None, fake, _texts())  # type: ignore[arg-type]
    assert set(found.ids) == {7, 9}
    assert found.before["early"] == 900.0
    assert found.before["calm"] == 1.0
    assert found.trials[0].ids == ()
    assert found.trials[0].worst == 900.0
    assert min(one.worst for one in found.trials) == 1.0
    assert not found.drops_first


def test_no_prefix_is_longer_than_allowed(fake: list[str]) -> None:
    found = search.find_prefix(None, fake, _texts(), most=1)  # type: ignore[arg-type]
    assert len(found.ids) <= 1
    assert all(len(one.ids) <= 1 for one in found.trials)


def test_a_token_that_begins_all_texts_is_known(fake: list[str]) -> None:
    found = search.find_prefix(None, fake, _texts(bos=2))  # type: ignore[arg-type]
    assert found.bos == 2
    assert found.ids[0] == 2
    assert found.drops_first
    assert {7, 9} <= set(found.ids)


def test_texts_without_spikes_need_no_prefix(fake: list[str]) -> None:
    found = search.find_prefix(None, ["calm"], _texts())  # type: ignore[arg-type]
    assert found.ids == ()
    assert found.why.startswith("no token spikes")


def test_a_prefix_that_does_not_help_is_not_taken(fake: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    again = {"early": dict.fromkeys((7, 9), 900.0)}
    monkeypatch.setattr(Fake, "spikes", again)
    monkeypatch.setattr(Fake, "peaks", _spiking_everywhere)
    found = search.find_prefix(None, ["early"], _texts())  # type: ignore[arg-type]
    assert found.ids == ()
    assert "no prefix makes the spikes vanish: the best leaves 900" in found.why


def _spiking_everywhere(self: Any, rows: Sequence[Row], front: Sequence[int] = ()) -> dict[str, NDArray[np.float32]]:
    return {name: np.where(np.isin(np.stack(rows), (7, 9)), np.float32(900), np.float32(1)) for name in self.names}


def test_the_context_is_the_one_behind_which_a_second_occurrence_spikes_least() -> None:
    class Contexts(Fake):
        def peaks(self, rows: Sequence[Row], front: Sequence[int] = ()) -> dict[str, NDArray[np.float32]]:
            return {"x": np.asarray([[1, 1, 80, 1, 1 if row[1] == 25 else 40] for row in rows], np.float32)}

    rows = [np.asarray([0, 25, 26, 27, 26, 26], np.int64)]
    (pair,) = search.contexts(Contexts(None, ["x"]), [7], rows, 0)
    assert (pair.candidate, pair.context, pair.rate) == (7, 25, 80.0)


def test_prefixquant_counts_outliers_and_puts_bos_last() -> None:
    rows = [np.asarray([1, 5, 6, 5, 8, 8, 8], np.int64), np.asarray([1, 5, 6, 7, 8, 8, 8], np.int64)]
    high = [[0, 1, 3], [0, 1]]  # three and two outliers: room for three tokens
    peaks = {"x": [np.where(np.isin(np.arange(7), at), 99, 1).astype(np.float32) for at in high]}
    assert search.prefixquant(peaks, rows, 1, 4) == (5, 1)
    assert search.prefixquant(peaks, rows, None, 4) == (5,)
    calm = {"x": [np.ones(7, np.float32)] * 2}
    assert search.prefixquant(calm, rows, 1, 4) == ()


def test_candidates_are_the_largest_tokens_of_the_texts() -> None:
    rows = [np.asarray([1, 5, 6, 7], np.int64), np.asarray([1, 8, 6, 5], np.int64)]
    peaks = [np.asarray([50, 9, 2, 3], np.float32), np.asarray([50, 1, 30, 4], np.float32)]
    assert search.spiking_tokens(peaks, rows, 1) == [6, 5, 7]
    assert search.spiking_tokens(peaks, rows, None) == [1, 6, 5]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=1, max_size=5))
def test_frequent_tokens_come_in_order_of_their_number(texts: list[list[int]]) -> None:
    rows = [np.asarray(text, np.int64) for text in texts]
    found = search.frequent(rows, 3, 100)
    counts = [sum(text.count(token) for text in texts) for token in found]
    assert counts == sorted(counts, reverse=True)
    assert set(found) == {one for text in texts for one in text} - {3}


def test_ratios_of_a_real_model_are_those_of_the_observation() -> None:
    graph = to_graph(glu.stack(spiking=(1,), layers=2))
    model = Model(graph, {}, None, 8)
    found, _ = candidates.find_candidates(graph, parse_target("tensorrt-rtx", None), ())
    names = list(dict.fromkeys(one.activation for one in found))
    rows = [feed["ids"][0] for feed in glu.feeds(3)]
    ratios = search.Meter(model, names).ratios(rows)
    spiking = [name for name, value in ratios.items() if value > 100]
    assert spiking == ["l1.glu"]
    result = search.find_prefix(model, names, rows)
    assert result.ids == (glu.TOKEN,)
    assert result.drops_first
    behind = search.Meter(model, names).ratios([row[1:] for row in rows], result.ids)
    assert behind["l1.glu"] < ratios["l1.glu"] / 10


def test_a_meter_gives_the_same_whatever_the_batch() -> None:
    free, fixed = (
        search.Meter(Model(to_graph(decoder.decoder(cache=False, batch=batch)), {}, None, 8), ["l1.glu"])
        for batch in ("batch", 2)
    )
    rows = list(decoder.tokens(3, 6))
    assert np.allclose(free.peaks(rows, (4, 5))["l1.glu"], fixed.peaks(rows, (4, 5))["l1.glu"], rtol=1e-4)
