"""The stages that predict times, and look for faster plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.compiler.base import Compilation
from qcompiler.compiler.stages.build_engine import build_engine
from qcompiler.compiler.stages.predict import PredictOptions, nothing_left, predict, replan
from qcompiler.engines.prediction import Prediction
from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.errors import EngineError
from qcompiler.ir import model as models
from qcompiler.target import parse_target
from tests.kit import decoder
from tests.kit.cases import prepared
from tests.kit.subjects import Standing, before, of_net


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Standing, Path]:
    folder = tmp_path_factory.mktemp("predict")
    standing = before("verify", prepared(folder, "conv"))
    assert standing.lowered is not None
    (file,) = models.save(standing.lowered.model, folder / "m.qdq.onnx")
    subject, options = standing.subject, standing.asked.build
    Compilation()(
        build_engine, file, folder / "m.engine", standing.lowered.model, subject.seen, subject.inputs, options
    )
    return standing, folder / "m.engine"


def predicted(
    made: tuple[Standing, Path], run: Compilation, target: str = "", *, last: bool = True
) -> Prediction | None:
    standing, engine = made
    assert standing.decided is not None
    assert standing.lowered is not None
    options = PredictOptions(standing.asked.build)
    if target:
        build = type(standing.asked.build)(parse_target(target), None, standing.asked.build.generation, False)
        options = PredictOptions(build)
    return run(predict, standing.subject, standing.decided, standing.lowered, engine, options, last=last)


def test_the_record_has_both_engines_and_what_is_left_out(made: tuple[Standing, Path]) -> None:
    run = Compilation()
    found = predicted(made, run)
    assert found is not None
    record = run.records["prediction"]
    assert record["high"]["kernels"] < record["engine"]["kernels"]
    assert record["shapes"]["x"][1:] == [3, 16, 16]
    assert "caches" in record["leaves_out"]
    assert run.warnings == [record["warning"]]
    assert [one.name for one in made[1].parent.iterdir() if "priced" in one.name] == []


def test_nothing_is_said_before_the_end(made: tuple[Standing, Path]) -> None:
    run = Compilation()
    assert predicted(made, run, last=False) is not None
    assert run.warnings == []


def test_engines_without_a_listing_have_no_prediction(made: tuple[Standing, Path]) -> None:
    run = Compilation()
    assert predicted(made, run, "tensorrt:sm89") is None
    assert run.records["prediction"] is None


def test_what_cannot_be_built_is_said(made: tuple[Standing, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object, **__: object) -> None:
        raise EngineError("no tactic for 'C1'")

    monkeypatch.setattr(TensorRTRTX, "build", build)
    run = Compilation()
    assert predicted(made, run) is None
    assert run.records["prediction"]["sms"] == {}
    assert run.warnings == [run.records["prediction"]["warning"]]
    assert "no tactic for 'C1'" in run.warnings[0]


def test_the_last_resort_is_high_precision(made: tuple[Standing, Path]) -> None:
    standing, engine = made
    assert standing.decided is not None
    assert standing.lowered is not None
    now = predicted(made, Compilation(), last=False)
    assert now is not None
    about = (standing.subject, standing.decided, standing.lowered)
    found = Compilation()(replan, *about, PredictOptions(standing.asked.build), now, engine.parent)
    assert found
    assert found[-1].prediction.ratio == 1.0
    assert found[-1].chosen.plan.quantized() == []
    assert nothing_left(found[-1]) is not None
    least = PredictOptions(standing.asked.build, least=0.99)
    assert all(one.chosen.plan.share() >= 0.99 for one in Compilation()(replan, *about, least, now, engine.parent))


def test_the_decode_of_a_decoder_is_predicted_as_well(tmp_path: Path) -> None:
    feeds = [decoder.feeds(decoder.tokens(1, 12, seed)) for seed in range(12)]
    standing = of_net("verify", decoder.decoder(), feeds, tmp_path)
    subject, options, lowered, run = standing.subject, standing.asked.build, standing.lowered, Compilation()
    assert lowered is not None
    assert standing.decided is not None
    (file,) = models.save(lowered.model, tmp_path / "m.qdq.onnx")
    run(build_engine, file, tmp_path / "m.engine", lowered.model, subject.seen, subject.inputs, options)
    about = (subject, standing.decided, lowered, tmp_path / "m.engine", PredictOptions(options))
    found = run(predict, *about)
    assert found is not None
    record = run.records["prediction"]
    first, second = record["shapes"]["input_ids"], record["decode"]["shapes"]["input_ids"]
    assert (first[1] > 1, second[1]) == (True, 1)
    assert sum(record["decode"]["engine"]["macs"].values()) < sum(record["engine"]["macs"].values())
    assert "profiles" not in record["leaves_out"]
    assert run(predict, *about, last=False).decode is None  # type: ignore[union-attr]
