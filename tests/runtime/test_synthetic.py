"""Made-up feeds: consistent sizes, and real feeds in other sizes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from qcompiler.errors import DataError
from qcompiler.ir.signature import Feeds, Inputs
from qcompiler.runtime.stream import OpenModel
from qcompiler.runtime.synthetic import first_that_runs, in_other_sizes, made_up
from tests.kit.rewrite import model, to_graph

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)


def test_axes_of_one_name_have_one_size_and_a_batch_is_one() -> None:
    inputs: Inputs = {"a": (FLOAT, ("n", "t", 4)), "b": (FLOAT, ("n", 3, "h", "w")), "c": (INT, ("t",))}
    for feed in made_up(inputs):
        a, b, c = (feed[name].shape for name in "abc")
        assert a[1] == c[0]
        assert a[0] == b[0] == 1
        assert (a[2], b[1]) == (4, 3)


def test_sums_of_names_are_sums_of_sizes() -> None:
    inputs: Inputs = {
        "mask": (INT, ("batch", "past + length")),
        "x": (FLOAT, ("batch", "length", 4)),
        "cache": (FLOAT, ("batch", 2, "past", 4)),
    }
    for feed in made_up(inputs):
        assert feed["mask"].shape[1] == feed["x"].shape[1] + feed["cache"].shape[2]


def test_language_models_get_what_texts_give() -> None:
    inputs: Inputs = {"input_ids": (INT, ("b", "t")), "attention_mask": (INT, ("b", "t"))}
    feed = next(made_up(inputs))
    assert feed["input_ids"].min() > 0
    assert len(np.unique(feed["input_ids"])) > 1
    assert (feed["attention_mask"] == 1).all()


def test_fixed_inputs_need_no_other_sizes() -> None:
    inputs: Inputs = {"x": (FLOAT, (2, 4))}
    feeds = list(made_up(inputs))
    assert {feed["x"].shape for feed in feeds} == {(2, 4)}
    assert list(in_other_sizes(feeds[0], inputs)) == []


def test_what_is_no_tensor_cannot_be_made() -> None:
    with pytest.raises(DataError, match="'s'"):
        next(made_up({"s": (None, None)}))


def test_other_sizes_keep_what_belongs_together_and_the_elements() -> None:
    inputs: Inputs = {"x": (FLOAT, ("n", None, 4)), "ids": (INT, ("n", None)), "mask": (INT, ("n", "past + seq"))}
    feed: Feeds = {
        "x": np.arange(24, dtype=np.float32).reshape(1, 6, 4),
        "ids": np.arange(6)[None],
        "mask": np.ones((1, 6), np.int64),
    }
    sizes = [feed, *in_other_sizes(feed, inputs)]
    assert len(sizes) > 2
    for one, other in pairwise(sizes):
        assert one["x"].shape != other["x"].shape
    for one in sizes:
        assert one["x"].shape[:2] == one["ids"].shape
        assert one["x"].shape[2] == 4
        assert set(one["ids"].ravel()) <= set(range(6))


def test_empty_axes_stay_empty() -> None:
    inputs: Inputs = {"x": (FLOAT, ("n", 4)), "past": (FLOAT, ("n", "p", 2))}
    feed = {"x": np.ones((1, 4), np.float32), "past": np.ones((1, 0, 2), np.float32)}
    found = list(in_other_sizes(feed, inputs))
    assert {one["past"].shape[1] for one in found} == {0}
    assert {one["x"].shape[0] for one in found} == {2}


def test_the_first_feed_that_runs_is_taken_and_else_the_reason_given() -> None:
    proto = model(("Reshape", "x s", "y"), inputs={"x": ("n", "m")}, weights={"s": np.array([-1, 5])})
    session = OpenModel(to_graph(proto))
    feeds = [{"x": np.ones((1, size), np.float32)} for size in (3, 10, 5)]
    taken, why = first_that_runs(session, feeds)
    assert taken is feeds[1]
    assert why == ""
    taken, why = first_that_runs(session, feeds[:1])
    assert taken is None
    assert "Reshape" in why


def test_a_feed_that_gives_nothing_but_nan_shows_nothing() -> None:
    session = OpenModel(to_graph(model(("Log", "x", "y"), inputs={"x": ("n", 4)})))
    taken, why = first_that_runs(session, [{"x": -np.ones((1, 4), np.float32)}, {"x": np.ones((1, 4), np.float32)}])
    assert taken is not None
    assert taken["x"].min() == 1
    assert first_that_runs(session, [{"x": -np.ones((1, 4), np.float32)}])[1] == "an output has nothing but NaN"
    assert why == ""
