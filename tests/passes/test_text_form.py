"""Pipelines as text: what is written reads back equal, and a mistake says what was meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import PipelineError
from qcompiler.passes import text_form
from qcompiler.passes.base import Fact, Note, Pass, Pipeline
from qcompiler.passes.pipelines import clean_up
from qcompiler.target import DType, parse_target


@dataclass(frozen=True)
class FoldThings(Pass):
    """Folds."""

    provides = frozenset({Fact.FOLDED})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        yield from ()


@dataclass(frozen=True)
class InsertThings(Pass):
    """Inserts."""

    requires = frozenset({Fact.FOLDED})
    bits: int = 8
    fast: bool = False
    limit: float | None = None
    label: str | None = None
    number: int | str = 3
    type: DType = DType.INT8
    mode: Literal["some", "all"] = "some"
    axes: tuple[int, ...] = ()
    names: tuple[str, ...] = ("a",)
    pair: tuple[float, DType] = (0.5, DType.FP8)

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        yield from ()

    def __post_init__(self) -> None:
        if self.bits == 7:
            raise ValueError("no seven")


KNOWN = (FoldThings, InsertThings)
texts = st.text(st.characters(exclude_categories=["Cs"]))
inserts = st.builds(
    InsertThings,
    bits=st.integers().filter(lambda n: n != 7),
    fast=st.booleans(),
    limit=st.none() | st.floats(allow_nan=False),
    label=st.none() | texts,
    number=st.integers() | texts,
    type=st.sampled_from(DType),
    mode=st.sampled_from(["some", "all"]),
    axes=st.lists(st.integers()).map(tuple),
    names=st.lists(texts).map(tuple),
    pair=st.tuples(st.floats(allow_nan=False), st.sampled_from(DType)),
)


@given(st.lists(inserts | st.builds(FoldThings), min_size=1))
def test_a_pipeline_reads_back_equal(passes: list[Pass]) -> None:
    pipeline = Pipeline(*passes, given=frozenset({Fact.FOLDED}))
    assert text_form.parse(str(pipeline), known=KNOWN, given=pipeline.given) == pipeline


def test_only_options_that_differ_from_their_defaults_are_written() -> None:
    assert str(InsertThings(bits=4, axes=(0, 1))) == "insert-things{bits=4,axes=(0,1)}"
    assert str(InsertThings()) == "insert-things"


def test_spaces_do_not_matter() -> None:
    found = text_form.parse(" fold-things , insert-things{ bits = 4 , fast = true }", known=KNOWN)
    assert found == Pipeline(FoldThings(), InsertThings(bits=4, fast=True))


def test_empty_braces_mean_the_defaults() -> None:
    assert text_form.parse("fold-things,insert-things{}", known=KNOWN) == Pipeline(FoldThings(), InsertThings())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fold-thing", "there is no pass 'fold-thing': did you mean 'fold-things'?"),
        ("fold-things{x=1}", "pass 'fold-things' has no option 'x': there are none"),
        ("insert-things{bit=4}", "pass 'insert-things' has no option 'bit': did you mean 'bits'?"),
        ("insert-things{bits}", "'bits' in 'insert-things{bits}' is not an option: write option=value"),
        ("insert-things{bits=4,bits=5}", "option 'bits' stands twice"),
        ("insert-things{bits=4.0}", "option 'bits' of pass 'insert-things' is an integer, not '4.0'"),
        ("insert-things{fast=yes}", "option 'fast' of pass 'insert-things' is true or false, not 'yes'"),
        ("insert-things{limit=x}", "option 'limit' of pass 'insert-things' is a number, not 'x'"),
        (
            "insert-things{type=int9}",
            "is one of fp32, fp16, bf16, int8, fp8, int4, int8-weight, int4-weight, fp4-weight, not 'int9'",
        ),
        ("insert-things{mode=none}", "is one of some, all, not 'none'"),
        ("insert-things{axes=1}", "is a list such as (a,b), not '1'"),
        ("insert-things{pair=(1.0)}", "is a list of 2, not '(1.0)'"),
        ('insert-things{names=("a\\q")}', "is a text, quoted as in JSON"),
        ("insert-things{bits=7}", "pass 'insert-things{bits=7}' cannot be made: no seven"),
        ("insert-things", "requires 'folded', which no earlier pass provides"),
        ("fold-things,,fold-things", "is not a pipeline: write pass,pass{option=value,...}"),
        ("fold-things}", "is not a pipeline"),
        ("insert-things{bits=4", "is not a pipeline"),
        ('insert-things{label="', "is not a pipeline"),
        ("fold things", "'fold things' is not a pass"),
        ("", "is not a pipeline"),
    ],
)
def test_mistakes_say_what_was_meant(text: str, says: str) -> None:
    with pytest.raises(PipelineError) as caught:
        text_form.parse(text, known=KNOWN)
    assert says in str(caught.value)


def test_the_shared_float_passes_read_back_equal() -> None:
    pipeline = clean_up(parse_target("tensorrt-rtx"))
    assert text_form.parse(str(pipeline), given=pipeline.given) == pipeline


def test_every_pass_of_the_package_can_be_described() -> None:
    for kind in text_form.available().values():
        row = text_form.describe(kind)
        assert row["name"] == kind.name()
        assert row["help"].endswith(".")
