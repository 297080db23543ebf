"""The stage that holds the engine's listing against the plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.compiler.base import Compilation
from qcompiler.compiler.stages.audit import audit, unkept
from qcompiler.compiler.stages.build_engine import build_engine
from qcompiler.errors import EngineError
from qcompiler.ir import model as models
from qcompiler.outliers.llm_int8 import Splits
from qcompiler.plan import Decision, Plan
from qcompiler.target import DType, parse_target
from tests.kit.cases import prepared
from tests.kit.subjects import before


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Plan]:
    folder = tmp_path_factory.mktemp("audit")
    standing = before("verify", prepared(folder, "conv"))
    assert standing.lowered is not None
    (file,) = models.save(standing.lowered.model, folder / "m.qdq.onnx")
    subject, options = standing.subject, standing.asked.build
    engine = folder / "m.engine"
    Compilation()(build_engine, file, engine, standing.lowered.model, subject.seen, subject.inputs, options)
    return engine, file, standing.lowered.plan


def test_what_was_promised_is_confirmed(built: tuple[Path, Path, Plan]) -> None:
    engine, file, plan = built
    run = Compilation()
    found = run(audit, engine, file, plan, Splits(), parse_target("tensorrt-rtx"), True)
    assert found is not None
    assert not found.mismatches
    assert run.records["audit"]["confirmed"] == run.records["audit"]["promised"] == 3


def test_a_broken_promise_is_a_warning_or_strictly_an_error(built: tuple[Path, Path, Plan]) -> None:
    engine, file, plan = built
    other = plan.deciding(Decision("S2", "Add", DType.INT8, "linear", "a promise nobody kept"))
    run = Compilation()
    run(audit, engine, file, other, Splits(), parse_target("tensorrt-rtx"), False)
    assert any("S2" in text for text in run.warnings)
    with pytest.raises(EngineError, match="does not keep 1 promise"):
        Compilation()(audit, engine, file, other, Splits(), parse_target("tensorrt-rtx"), True)


def test_the_share_is_what_the_listing_confirms(built: tuple[Path, Path, Plan]) -> None:
    engine, file, plan = built
    run, rtx = Compilation(), parse_target("tensorrt-rtx")
    run(audit, engine, file, plan, Splits(), rtx, False)
    assert run.records["macs"]["confirmed"]
    assert run.records["macs"]["quantized_share"] == run.records["macs"]["promised_share"] == plan.share()
    more = plan.deciding(Decision("S2", "Add", DType.INT8, "linear", "a promise nobody kept", 10**9))
    run(audit, engine, file, more, Splits(), rtx, False)
    said = run.records["macs"]
    assert said["promised_share"] > 0.9 > 0.1 > said["quantized_share"] > 0
    assert said["by_precision"]["unconfirmed"] == 10**9


def test_a_promise_that_is_planned_anew_is_no_warning_yet(built: tuple[Path, Path, Plan]) -> None:
    engine, file, plan = built
    other = plan.deciding(Decision("Y", "Gemm", DType.INT8, "linear", "a layer that the file has in float"))
    run, rtx = Compilation(), parse_target("tensorrt-rtx")
    found = run(audit, engine, file, other, Splits(), rtx, True, {"Y", "C1"})
    assert unkept(found, {"Y", "C1"}) == ("Y",)
    assert unkept(found, ()) == unkept(None, {"Y"}) == ()
    assert not run.warnings
    with pytest.raises(EngineError, match="does not keep 1 promise"):
        run(audit, engine, file, other, Splits(), rtx, True, {"C1"})


def test_engines_that_write_no_listing_are_not_audited(built: tuple[Path, Path, Plan]) -> None:
    engine, file, plan = built
    run = Compilation()
    assert run(audit, engine, file, plan, Splits(), parse_target("onnxruntime"), True) is None
    assert run.records["audit"] is None
