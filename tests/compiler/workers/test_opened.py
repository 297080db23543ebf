"""Who works, by what is asked; and the same artefacts, whoever does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qcompiler.compiler.compile import quantize
from qcompiler.compiler.workers.opened import at_work, opened
from qcompiler.compiler.workers.processes import Processes
from qcompiler.planning.simulation import noise
from qcompiler.recipe.recipe import Recipe
from tests.kit.cases import prepared
from tests.kit.manifests import settled


def test_one_worker_is_this_process() -> None:
    assert opened(1, None) is None
    with at_work(2, None) as found:
        assert isinstance(found, Processes)
        assert found.count == 2


@pytest.mark.parametrize(
    "recipe",
    [{}, {"precision": "int4-weight", "target": "onnxruntime"}, {"min_sqnr": 40.0}],
    ids=["int8", "int4-weight", "searched"],
)
def test_two_processes_give_the_bytes_of_one(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "WORTH_SHARING", 0.0)
    shared = list[str]()
    begin = Processes.each

    def watched(self: Processes, *given: Any) -> Any:
        shared.append(given[0].__name__)
        return begin(self, *given)

    monkeypatch.setattr(Processes, "each", watched)
    case = prepared(tmp_path, "transformer")
    plans = []
    for workers in (1, 2):
        found = quantize(
            case.source,
            data=str(case.data),
            recipe=Recipe(workers=workers, **recipe),
            output=case.out / f"{workers}.qdq.onnx",
            cache=False,
        )
        told = settled(found.manifest)
        plans.append({key: told[key] for key in told if key not in ("recipe", "files")})
    assert (case.out / "1.qdq.onnx").read_bytes() == (case.out / "2.qdq.onnx").read_bytes()
    assert plans[0] == plans[1]
    assert ("Trying" in shared) == ("min_sqnr" in recipe)
