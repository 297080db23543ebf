"""Stages as the life of a model runs them: keys that say what runs again, values that nobody changes, a new stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.compiler import content
from qcompiler.compiler.ask import ask
from qcompiler.compiler.base import Compilation, Done, Stage, stage
from qcompiler.compiler.compile import life
from qcompiler.compiler.content import digest
from qcompiler.compiler.record import manifest
from qcompiler.compiler.stages.clean_up import clean_up
from qcompiler.compiler.stages.load import load
from qcompiler.compiler.subject import Subject
from qcompiler.errors import UsageError
from qcompiler.ir.graph import is_constant
from qcompiler.recipe import checks
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable, SmoothQuantTable
from qcompiler.report import html
from tests.kit.cases import Case, prepared
from tests.kit.memory import Memory


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return prepared(tmp_path_factory.mktemp("block"), "transformer")


def lived(case: Case, cache: Memory, name: str = "m", **recipe: Any) -> list[str]:
    """Compiles with a cache; the stages that were answered from it."""
    asked = ask(Recipe(**recipe), str(case.data), case.out / f"{name}.qdq.onnx", build=False)
    before = len(cache.hits)
    life(Compilation(cache=cache), case.source, str(case.data), asked)
    return cache.hits[before:]


@pytest.fixture(scope="module")
def known(block: Case) -> Memory:
    """What a compilation with defaults leaves in the cache."""
    cache = Memory()
    assert lived(block, cache) == []
    return cache


ALL = (
    "clean_up qfep observe check_data calibrate equalize smooth_quant llm_int8 fit_weights shift weight_only decide "
    "lower verify check_finite"
).split()


@pytest.mark.parametrize(
    ("changed", "answered"),
    [
        ({}, ALL),
        ({"smooth_quant": SmoothQuantTable(alpha=0.5)}, ALL[:6]),
        ({"safety": SafetyTable(target_sqnr_db=60)}, ALL[:4]),  # where the climb ends is another question
        ({"io_types": "high-precision"}, ALL[:12]),
        ({"verify_samples": 2}, [*ALL[:3], *ALL[4:13]]),
        ({"min_sqnr": 1.0}, ALL[:4]),  # another goal, and where the climb ends is another question
        ({"target": "tensorrt-rtx:sm89"}, [*ALL[:12], *ALL[13:]]),  # the GPU is named where the graph is made legal
        ({"precision": "fp8", "target": "tensorrt-rtx:sm89"}, ALL[:4]),  # another format is asked of the same data
        ({"target": "onnxruntime"}, []),  # its float passes and its rules of placement are others
        ({"equalize": True}, [*ALL[1:5], *ALL[6:]]),  # there is nothing to equalize here: what comes out is the same
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_a_stage_is_not_given_does_not_make_it_run_again(
    block: Case, known: Memory, changed: dict[str, Any], answered: list[str]
) -> None:
    assert lived(block, known, f"m{len(known.asked)}", **changed) == answered


def test_an_answer_from_the_cache_gives_the_same_files(block: Case, known: Memory) -> None:
    assert lived(block, known, "again") == ALL
    assert (block.out / "again.qdq.onnx").read_bytes() == (block.out / "m.qdq.onnx").read_bytes()


class Watching(Compilation):
    """Holds the content of what a stage is given before its work against that after the whole life."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[str, Any, str]] = []

    def __call__(self, one: Stage[Any, Any], *inputs: Any, **options: Any) -> Any:
        if one.kept:
            self.given += [(one.name, value, digest(value)) for value in inputs]
        return super().__call__(one, *inputs, **options)


@pytest.mark.parametrize("model", ["conv", "transformer"])
@pytest.mark.parametrize("precision", ["int8", "int4-weight", "int8-dynamic"])
def test_nobody_changes_a_value_after_handing_it_on(tmp_path: Path, model: str, precision: str) -> None:
    case, run = prepared(tmp_path, model), Watching()
    recipe = Recipe(precision=precision, target="onnxruntime", min_sqnr=None)
    life(run, case.source, str(case.data), ask(recipe, str(case.data), case.out / "m.qdq.onnx", build=False))
    assert len(run.given) > 12
    content.forget()  # else what was changed would have the hash that it had
    assert [name for name, value, before in run.given if digest(value) != before] == []


@dataclasses.dataclass(frozen=True)
class ZerosTable(checks.Keys):
    """The table of a new stage: check and help stand at the key."""

    below: float = checks.option(0.0, checks.number(0, 1), "|w| up to which a weight counts as zero")


@stage(version=1)
def zeros(run: Compilation, subject: Subject, table: ZerosTable) -> Done[Subject]:
    """The file of a new stage: how many zeros the weights have."""
    constants = {
        tensor.name: tensor.values
        for node in subject.model.graph.nodes
        for tensor in node.inputs
        if is_constant(tensor) and tensor.values.dtype.kind == "f"
    }
    with run.working(len(constants)) as advance:
        found = {}
        for name, values in constants.items():
            found[name] = int(np.count_nonzero(np.abs(values) <= table.below))
            advance(1)
    return Done(subject, {"zeros": {"below": table.below, "weights": found}})


def test_a_new_stage_is_its_file_its_line_and_its_table(block: Case) -> None:
    asked = ask(Recipe(), str(block.data), block.out / "zeros.qdq.onnx", build=False)
    run = Compilation(cache=Memory())
    subject = run(load, block.source, str(block.data), asked.load)
    subject = run(clean_up, subject, asked.target, asked.recipe.equalize)
    subject = run(zeros, subject, ZerosTable(below=0.5))  # its line
    record = manifest(run, asked.recipe)
    assert sum(record["zeros"]["weights"].values()) > 0
    assert "zeros" in record["timings"]
    assert "zeros" in html.render(record)
    with pytest.raises(UsageError, match="below"):
        ZerosTable(below=2.0)
