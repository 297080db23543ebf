"""The front of an earlier compilation: read from its manifest, refused for another model or other data, made again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.compiler.compile import CompileResult, quantize
from qcompiler.errors import DataError, ModelError, UsageError
from qcompiler.planning.recorded import Recorded
from qcompiler.planning.simulation.simulator import Use
from qcompiler.recipe.recipe import Recipe
from qcompiler.target import DType
from tests.kit.cases import prepared

MANIFEST: dict[str, Any] = {
    "source": {"sha256": "ab" * 32},
    "data": {"fingerprint": "cd" * 32},
    "front": [
        {"id": 0, "share": 1.0, "sqnr_db": 20.0, "predicted_s": None, "high": [], "formats": {"x": "int8", "h": "int8"},
         "measured": True, "chosen": False},
        {"id": 1, "share": 0.6, "sqnr_db": 30.0, "predicted_s": None, "high": ["h"], "formats": {"x": "int8"},
         "measured": True, "chosen": True},
        {"id": 2, "share": 0.0, "sqnr_db": None, "predicted_s": None, "high": ["h", "x"], "formats": {},
         "measured": False, "chosen": False},
    ],
    "safety": {
        "uses": {"x": {"int8": {"dtype": "int8", "amax": 2.0}}, "h": {"int8": {"dtype": "int8", "amax": 3.0}}},
        "alone": {"x": {"int8": 1e-4}, "h": {"int8": 1e-2}},
        "target_db": 25.0,
    },
    "quantizers": [{"tensor": "x", "calibrator": "minmax"}],
    "qfem": {"alpha": 50.0, "rule": "why", "chosen": [{"tensor": "s", "ratio": 90.0}]},
}  # fmt: skip


def test_a_front_is_read_with_its_ranges() -> None:
    found = Recorded.of(MANIFEST, "m.json")
    assert [one.share for one in found.net.front] == [1.0, 0.6, 0.0]
    assert found.net.front[0].uses == {"x": Use(DType.INT8, 2.0), "h": Use(DType.INT8, 3.0)}
    assert found.net.front[2].sqnr_db == math.inf
    assert (found.net.restored, found.net.amax) == (("h",), {"x": 2.0, "h": 3.0})
    assert (found.spared.tensors, found.spared.alpha, found.calibrators) == (("s",), 50.0, {"x": "minmax"})


@pytest.mark.parametrize(("pick", "high"), [("fastest", ()), (0.9, ()), (0.7, ("h",)), (1, ("h",)), (2, ("h", "x"))])
def test_a_point_is_picked(pick: Any, high: tuple[str, ...]) -> None:
    pinned = Recorded.of(MANIFEST, "m.json").pinned(pick)
    assert pinned.net.restored == high
    assert pinned.reached is not None
    assert pinned.reached.why.endswith(f"of the front of m.json, picked: {pick}")


@pytest.mark.parametrize(("key", "value"), [("front", []), ("safety", None), ("safety", {"uses": {}})])
def test_a_manifest_without_a_front_is_refused(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=r"m\.json has no front to pick from"):
        Recorded.of({**MANIFEST, key: value}, "m.json")


def test_a_front_that_lacks_a_range_is_refused() -> None:
    safety = {**MANIFEST["safety"], "uses": {"x": MANIFEST["safety"]["uses"]["x"]}}
    with pytest.raises(UsageError, match="names 'h', of which it has no range"):
        Recorded.of({**MANIFEST, "safety": safety}, "m.json")


def test_another_model_and_other_data_are_refused() -> None:
    found = Recorded.of(MANIFEST, "m.json")
    found.refuse_other_model("ab" * 32)
    found.refuse_other_model(None)
    found.refuse_other_data("cd" * 32)
    with pytest.raises(ModelError, match=r"of another model file \(SHA-256 abababababab"):
        found.refuse_other_model("00" * 32)
    with pytest.raises(DataError, match=r"made with other data \(fingerprint cdcdcdcdcdcd"):
        found.refuse_other_data("00" * 32)
    replace(found, source=None, data=None).refuse_other_data("00" * 32)


@pytest.fixture
def first(tmp_path: Path) -> tuple[Any, CompileResult, Path]:
    case = prepared(tmp_path, "transformer")
    made = quantize(case.source, data=str(case.data), recipe=Recipe(min_sqnr=41.0), output=tmp_path / "a.qdq.onnx")
    return case, made, tmp_path / "b.qdq.onnx"


def _ranges(made: CompileResult) -> dict[str, float]:
    return {name: one.amax for name, one in made.plan.quantizers.items()}


def test_a_point_is_made_again_without_a_search(first: tuple[Any, CompileResult, Path]) -> None:
    case, made, output = first
    front = made.manifest["front"]
    assert len(front) > 2
    chosen = next(row for row in front if row["chosen"])

    def again(pick: Any) -> CompileResult:
        recipe = Recipe(pick=pick, replay=str(made.manifest_path))
        return quantize(case.source, data=str(case.data), recipe=recipe, output=output)

    assert any(one["kept"] for one in made.manifest["rungs"] if one["name"] in ("fit_weights", "shift"))
    same = again(chosen["id"])
    assert [(one.node, one.precision) for one in same.plan] == [(one.node, one.precision) for one in made.plan]
    assert _ranges(same) == _ranges(made)
    assert same.qdq_path.read_bytes() == made.qdq_path.read_bytes()
    assert same.manifest["front"] == front
    fast = again("fastest")
    assert fast.plan.share() == pytest.approx(max(row["share"] for row in front), abs=0.01)
    assert fast.manifest["safety"]["runs"] == 0
    assert fast.manifest["goal"]["why"].endswith("picked: fastest")
    with pytest.raises(UsageError, match=f"the front has {len(front)} points"):
        again(99)


def test_a_replay_of_something_else_is_refused(first: tuple[Any, CompileResult, Path], tmp_path: Path) -> None:
    case, made, output = first
    recipe = Recipe(pick="knee", replay=str(made.manifest_path))
    with np.load(case.data) as stored:
        np.savez(tmp_path / "other.npz", **{name: value * 2 for name, value in stored.items()})
    with pytest.raises(DataError, match="was made with other data"):
        quantize(case.source, data=str(tmp_path / "other.npz"), recipe=recipe, output=output)
    with pytest.raises(UsageError, match="was made with precision 'int8', and 'fp8' is asked for now"):
        quantize(
            case.source,
            data=str(case.data),
            recipe=recipe.replace(precision="fp8", target="tensorrt-rtx:sm89"),
            output=output,
        )
    manifest = json.loads(made.manifest_path.read_text("utf8"))
    manifest["source"]["sha256"] = "00" * 32
    made.manifest_path.write_text(json.dumps(manifest), "utf8")
    with pytest.raises(ModelError, match="is of another model file"):
        quantize(case.source, data=str(case.data), recipe=recipe, output=output)
