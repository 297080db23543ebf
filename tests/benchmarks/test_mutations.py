"""Models broken on purpose: each way breaks what it says and nothing else, and what is measured is told truly."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import qcompiler
from benchmarks import mutations
from benchmarks.breaking import HUGE, KINDS, SWAPPED, Draft, broken, layers_of
from benchmarks.replay.models import Subject, cnn
from qcompiler.ir import model as models
from qcompiler.recipe.recipe import Recipe
from qcompiler.runtime.session import Session
from qcompiler.verification import emulation
from qcompiler.verification.verdict import Judgement
from tests.kit.models import RealModel, Run

KEPT = 8  # feeds to calibrate; the others judge


@pytest.fixture(scope="module")
def subject() -> Subject:
    return cnn()


@pytest.fixture(scope="module")
def folder(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the float model and the compiled one."""
    out = tmp_path_factory.mktemp("mutations")
    assert isinstance(subject.proto, onnx.ModelProto)
    onnx.save(subject.proto, out / "float.onnx")
    recipe = Recipe(precision="int8", target="tensorrt")
    qcompiler.quantize(out / "float.onnx", data=subject.feeds[:KEPT], recipe=recipe, output=out / "cnn.qdq.onnx")
    return out


@pytest.fixture(scope="module")
def real(subject: Subject, folder: Path) -> RealModel:
    """The metric is the share of samples with the class of the float model."""
    classes = [Session(folder / "float.onnx").run(feed)["y"].argmax() for feed in subject.feeds]

    def metric(run: Run) -> float:
        return float(
            np.mean([run(dict(feed))[0].argmax() == at for feed, at in zip(subject.feeds, classes, strict=True)])
        )

    path = folder / "float.onnx"
    return RealModel("cnn", path, lambda: iter(subject.feeds[:KEPT]), lambda: iter(subject.feeds[KEPT:]), metric, 1.0)


def first(proto: onnx.ModelProto, kind: str) -> tuple[onnx.ModelProto, Any]:
    """The first layer that can be broken in this way."""
    tried = (broken(proto, kind, layer, np.random.default_rng(0)) for layer in layers_of(proto, kind))
    return next(made for made in tried if made is not None)


def run(proto: onnx.ModelProto, feed: dict[str, Any], *, half: bool, path: Path) -> Any:
    onnx.save(proto, path)
    model = models.load(path)
    return Session(emulation.runnable(model, half=True) if half else model).run(feed)["y"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_breaks_a_copy_in_a_layer_that_it_names(kind: str, folder: Path, subject: Subject) -> None:
    proto = onnx.load(folder / "cnn.qdq.onnx")
    before = proto.SerializeToString()
    after, what = first(proto, kind)
    assert proto.SerializeToString() == before
    assert what.kind == kind
    assert what.layer in what.guilty
    assert what.guilty <= {node.name for node in proto.graph.node}
    onnx.checker.check_model(after)
    exact, got = (run(one, subject.feeds[-1], half=True, path=folder / "one.onnx") for one in (proto, after))
    assert not np.array_equal(exact, got)


@pytest.mark.parametrize(
    ("kind", "factors"),
    [("activation scale x8", (1, 8)), ("range x8", (8, 8)), ("range /8", (0.125, 0.125))],
)
def test_an_activation_has_a_wrong_scale(kind: str, factors: tuple[float, float], folder: Path) -> None:
    proto = onnx.load(folder / "cnn.qdq.onnx")
    after, what = first(proto, kind)
    old, new = (scales_in_front(one, what.layer) for one in (proto, after))
    np.testing.assert_allclose(new, np.multiply(old, factors))


def scales_in_front(proto: onnx.ModelProto, layer: str) -> list[Any]:
    draft = Draft(proto)
    pair = draft.pair(node_of(proto, layer))
    assert pair is not None
    return [draft.array(node.input[1]) for node in pair]


def node_of(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in proto.graph.node if node.name == name)
    return found


def test_a_weight_is_eight_times_as_large(folder: Path) -> None:
    proto = onnx.load(folder / "cnn.qdq.onnx")
    after, what = first(proto, "weight scale x8")
    scales: list[Any] = []
    for one in (proto, after):
        weight = Draft(one).weight(node_of(one, what.layer))
        assert weight is not None
        assert weight.scaled is not None
        scales.append(Draft(one).array(weight.scaled.input[1]))
    np.testing.assert_allclose(scales[1], 8 * scales[0])


def test_what_overflows_in_half_is_exact_in_float(folder: Path, subject: Subject) -> None:
    proto = onnx.load(folder / "cnn.qdq.onnx")
    after, _ = first(proto, "FP16 overflow")
    added = [node for node in after.graph.node if node.op_type == "Mul"][-2:]
    assert len(after.graph.node) == len(proto.graph.node) + 2
    assert added
    half = run(after, subject.feeds[-1], half=True, path=folder / "half.onnx")
    assert not np.allclose(run(proto, subject.feeds[-1], half=True, path=folder / "half.onnx"), half, rtol=0.1)
    held = {one.name: numpy_helper.to_array(one) for one in after.graph.initializer}
    factors = sorted(float(value) for name, value in held.items() if "/broken" in name)
    assert factors == [1 / HUGE, HUGE]


def test_channels_of_an_output_change_places_and_keep_what_they_say(folder: Path, subject: Subject) -> None:
    proto = onnx.load(folder / "cnn.qdq.onnx")
    after, what = first(proto, SWAPPED)
    one, other = _channels(what.detail)
    exact, got = (run(each, subject.feeds[-1], half=True, path=folder / "swap.onnx") for each in (proto, after))
    order = np.arange(exact.shape[-1])
    order[[one, other]] = other, one
    np.testing.assert_array_equal(exact[:, order], got)


def _channels(detail: str) -> tuple[int, int]:
    numbers = [int(word) for word in detail.split() if word.isdigit()]
    return numbers[0], numbers[1]


def test_only_layers_that_make_an_output_have_its_channels(folder: Path) -> None:
    proto = onnx.load(folder / "cnn.qdq.onnx")
    assert layers_of(proto, SWAPPED) == layers_of(proto, "weight scale x8")[-1:]


def test_a_broken_model_is_found_and_its_layer_named(real: RealModel, folder: Path) -> None:
    found = mutations.measure(real, 2, 0, folder)
    assert found.verdict == "holds"
    assert [row.kind for row in found.rows] == list(KINDS)[:2]
    for row in found.rows:
        assert row.before_db == found.before_db
        assert row.found
        assert row.named == 1
        assert row.drop is None


def test_what_is_not_found_is_judged_by_the_metric(
    real: RealModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutations, "verdict_of", lambda *_: Judgement())
    (row,) = mutations.measure(real, 1, 0, folder).rows
    assert not row.found
    assert row.drop is not None
    assert row.missed == (row.drop > 0.01)


def row(**changes: Any) -> mutations.Row:
    one = mutations.Row(
        "m", "dropped bias", "late", "conv", "8 values", 30.0, 2.0, "broken", ("y has 2.0 dB",), ("conv",), 1, None, 0.5
    )
    return dataclasses.replace(one, **changes)


def test_the_tables_count_what_was_found_and_mark_what_was_not(tmp_path: Path) -> None:
    missed = row(kind="flipped sign", after_db=20.0, verdict="holds", named=None, drop=0.25)
    close = row(kind="flipped sign", after_db=29.0, verdict="holds", named=None, drop=-0.01)
    outcome = mutations.Outcome("m", 30.0, "holds", (row(), row(after_db=-np.inf), missed, close), 4)
    text = "\n".join(mutations.report([outcome]))
    assert "| dropped bias | 2 | 2 | 2 | 0 | 0 |" in text
    assert "| flipped sign | 2 | 0 | 0 | 1 | 1 |" in text
    assert "| all | 4 | 2 | 2 | 1 | 1 |" in text
    assert "| m | 30.0 | holds | 4 | 2 | 2 | 1 | 1 | 4 |" in text
    assert "| m | flipped sign | late | `conv` | 30.0 | 20.0 | **holds** | **no** | 25.0% |" in text
    assert "| m | flipped sign | late | `conv` | 30.0 | 29.0 | holds | no | -1.0% |" in text
    assert "| 30.0 | not finite | broken | 1. |" in text
    mutations.write([outcome], tmp_path)
    data = json.loads((tmp_path / "mutations.json").read_text(encoding="utf8"))
    assert [one["named"] for one in data["models"][0]["rows"]] == [1, 1, None, None]
    assert (tmp_path / "mutations.md").read_text(encoding="utf8") == text + "\n"


def test_a_model_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        mutations.main(["--models", "magica"])
    assert "there is no model 'magica'" in capsys.readouterr().err
