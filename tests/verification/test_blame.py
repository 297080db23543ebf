from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.errors import DataError, InternalError, ModelError
from qcompiler.ir.model import Model
from qcompiler.runtime.stream import OpenModel, stream
from qcompiler.verification.blame import blaming
from tests.kit.rewrite import Spec, model, to_graph

TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


def looked_up(*nodes: Spec, rows: int = 4) -> Model:
    proto = model(*nodes, inputs={"i": (np.int64, ("n",))}, weights={"w": TABLE[:rows]})
    return Model(to_graph(proto), {}, None, 8)


SOUND = looked_up(("Gather", "w i", "y"))
OURS = looked_up(("Gather", "w i", "a"), ("Relu", "a", "y"), rows=2)  # as if a pass had lost two rows


def test_a_graph_that_fails_on_what_the_model_takes_is_ours() -> None:
    text = (
        "stage 'decide' made of the model, while the model itself runs on the same feed: .*Gather.*out of data bounds"
    )
    with pytest.raises(InternalError, match=text) as caught, blaming("stage 'decide'", SOUND):
        OpenModel(OURS).run({"i": np.array([3])})
    assert "Neither the model nor the data is to blame" in str(caught.value)
    assert caught.value.exit_code == 1


def test_also_where_it_is_run_in_parts() -> None:
    with pytest.raises(InternalError), blaming("stage 'observe'", SOUND):
        list(stream(OURS, ["a", "y"], [{"i": np.array([3])}], budget=1))


def test_a_feed_that_the_model_does_not_take_stays_one() -> None:
    with pytest.raises(DataError, match="Gather"), blaming("stage 'decide'", SOUND):
        OpenModel(OURS).run({"i": np.array([5])})
    with pytest.raises(DataError), blaming("stage 'load'", None):
        OpenModel(SOUND).run({"i": np.array([5])})


def test_a_graph_that_cannot_be_opened_is_ours_too() -> None:
    broken = to_graph(model(("Relu", "x", "y")))
    broken.nodes[0].op = "NoSuchOperator"
    with pytest.raises(InternalError, match="while the model itself can be opened"), blaming("stage 'lower'", SOUND):
        OpenModel(broken)
    with pytest.raises(ModelError, match="NoSuchOperator"), blaming("stage 'lower'", Model(broken, {}, None, 8)):
        OpenModel(broken)


def test_what_was_no_run_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a word"), blaming("stage 'lower'", SOUND):
        raise ModelError("a word")
