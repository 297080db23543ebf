"""The two halves of a compilation: the clean-up keeps what models compute, the lowering has what a target needs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.ir import model as models
from qcompiler.passes.base import Changed, Fact, Pass, Pipeline, Report
from qcompiler.passes.cleanup.eliminate_dead import EliminateDead
from qcompiler.passes.pipelines import NORMAL, clean_up, lowering
from qcompiler.passes.quantize.dynamic_quant import RULE, DynamicQuant
from qcompiler.plan import Decision, Plan
from qcompiler.runtime import shapes
from qcompiler.statistics.ranges import Ranges
from qcompiler.target import DType, Target, parse_target
from qcompiler.verification.equivalence import Equivalence
from tests.kit import facts
from tests.kit.rewrite import model, random_feeds, to_graph, whole

TARGET = Target("onnxruntime", opset=21)


FLOAT_FACTS = (Fact.NAMED, Fact.CONSTANTS, Fact.FOLDED, Fact.UNSHARED)


LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


def _clean(graph: Any, feeds: Any) -> dict[str, float | None]:
    """Runs the clean-up behind the equal, infers shapes after every change as the compiler does."""
    equal = Equivalence(graph, feeds)
    errors: dict[str, float | None] = {}

    def after(one: Pass, report: Report) -> None:
        if report.changed:
            shapes.infer(graph)
        errors[one.name()] = equal.check(one, report, graph)

    clean_up(TARGET)(graph, after)
    return errors


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_onnx_s_light_models_survive(path: Path) -> None:
    loaded = models.load(path)
    shapes.infer(loaded)
    _clean(loaded.graph, [random_feeds(loaded.graph)])
    assert loaded.graph.opset == 21
    assert [violation for fact in FLOAT_FACTS for violation in facts.verify(fact, loaded.graph)] == []


def test_the_shufflenet_keeps_its_convolutions_and_loses_its_normalisations() -> None:
    loaded = models.load(next(path for path in LIGHT if "shufflenet" in path.stem))
    shapes.infer(loaded)
    before = Counter(node.op for node in loaded.graph.nodes)
    _clean(loaded.graph, [random_feeds(loaded.graph)])
    after = Counter(node.op for node in loaded.graph.nodes)
    assert before["BatchNormalization"] == 49
    assert after["BatchNormalization"] == 0
    assert after["Conv"] == before["Conv"]


@st.composite
def chains(draw: st.DrawFn) -> onnx.ModelProto:
    """A chain of layers over a matrix [3, C] or an image [2, C, 5, 5], with idle nodes between them."""
    seed = draw(st.integers(0, 2**16))
    image = draw(st.booleans())
    kinds = _IMAGE_KINDS if image else _MATRIX_KINDS
    builder = _Builder(np.random.default_rng(seed), image)
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=8)):
        builder.add(kind)
    return builder.model(draw(st.sampled_from([12, 13, 17, 18])))


_IDLE = ("Identity", "Dropout", "Cast", "Constant")


_IMAGE_KINDS = ("Conv", "Grouped", "ConvTranspose", "Norm", "Mul", "Add", "Relu", "Pad", "Branch", *_IDLE)


_MATRIX_KINDS = ("MatMul", "Gemm", "GemmT", "Norm", "Mul", "Add", "Relu", "Softmax", "Twice", "Transposed", *_IDLE)


class _Builder:
    def __init__(self, rng: np.random.Generator, image: bool) -> None:
        self.rng = rng
        self.image = image
        self.channels = 4
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}
        self.last = "x"

    def add(self, kind: str) -> None:
        getattr(self, f"_{kind.lower()}")()

    def model(self, opset: int) -> onnx.ModelProto:
        self._push("Identity", [])
        self.nodes[-1] = (*self.nodes[-1][:2], "y", *self.nodes[-1][3:])
        inputs = {"x": (2, 4, 5, 5) if self.image else (3, 4)}
        return model(*self.nodes, inputs=inputs, weights=self.weights, opset=opset)

    def _weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = (self.rng.standard_normal(shape) / 2).astype(np.float32)
        return name

    def _push(self, op: str, more: list[str], attrs: dict[str, Any] | None = None, first: bool = True) -> None:
        reads = [self.last, *more] if first else [*more, self.last]
        output = f"t{len(self.nodes)}"
        self.nodes.append((op, " ".join(reads), output, attrs or {}))
        self.last = output

    def _conv(self) -> None:
        self._push("Conv", [self._weight(6, self.channels, 3, 3), self._weight(6)], {"pads": [1] * 4})
        self.channels = 6

    def _grouped(self) -> None:
        self._push("Conv", [self._weight(self.channels, self.channels // 2, 1, 1)], {"group": 2})

    def _convtranspose(self) -> None:
        self._push("ConvTranspose", [self._weight(self.channels, 2, 3, 3)], {"group": 2, "pads": [1] * 4})
        self.channels = 4

    def _matmul(self) -> None:
        self._push("MatMul", [self._weight(self.channels, 5)])
        self.channels = 5

    def _gemm(self) -> None:
        self._push("Gemm", [self._weight(self.channels, 6), self._weight(1, 6)], {"beta": 0.5})
        self.channels = 6

    def _gemmt(self) -> None:
        self._push("Gemm", [self._weight(6, self.channels)], {"transB": 1, "alpha": 2.0})
        self.channels = 6

    def _norm(self) -> None:
        names = [self._weight(self.channels) for _ in range(4)]
        self.weights[names[3]] = np.abs(self.weights[names[3]]) + np.float32(0.2)
        self._push("BatchNormalization", names)

    def _per_channel(self) -> str:
        return self._weight(1, self.channels, 1, 1) if self.image else self._weight(self.channels)

    def _mul(self) -> None:
        self._push("Mul", [self._per_channel()])

    def _add(self) -> None:
        self._push("Add", [self._per_channel()], first=False)

    def _relu(self) -> None:
        self._push("Relu", [])

    def _softmax(self) -> None:
        self._push("Softmax", [], {"axis": 1})

    def _pad(self) -> None:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.array([0, 0, 1, 0, 0, 0, 0, 1])
        self._push("Pad", [name])

    def _branch(self) -> None:
        kept = self.last
        self._push("Relu", [])
        self._push("Add", [kept])

    def _twice(self) -> None:
        name = self._weight(self.channels, self.channels)
        self._push("MatMul", [name])
        self._push("MatMul", [name])

    def _transposed(self) -> None:
        self.nodes.append(("Transpose", self._weight(5, self.channels), f"t{len(self.nodes)}"))
        self._push("MatMul", [self.nodes[-1][2]])
        self.channels = 5

    def _identity(self) -> None:
        self._push("Identity", [])

    def _dropout(self) -> None:
        self._push("Dropout", [])

    def _cast(self) -> None:
        self._push("Cast", [], {"to": onnx.TensorProto.FLOAT})

    def _constant(self) -> None:
        self.nodes.append(("Constant", "", f"t{len(self.nodes)}", {"value_float": 1.0}))
        self._push("Mul", [self.nodes[-1][2]])


@settings(max_examples=60)
@given(chains())
def test_the_clean_up_keeps_what_generated_models_compute(proto: onnx.ModelProto) -> None:
    onnx.checker.check_model(proto)
    graph = to_graph(proto)
    _clean(graph, [random_feeds(graph, seed) for seed in range(2)])
    onnx.checker.check_model(whole(graph), full_check=True)
    assert [violation for fact in FLOAT_FACTS for violation in facts.verify(fact, graph)] == []
    again = clean_up(TARGET)(graph)
    assert [note for report in again for note in report.notes if isinstance(note, Changed)] == []


def _names(pipeline: Pipeline) -> list[str]:
    return [one.name() for one in pipeline.passes]


def test_only_what_tensorrt_cannot_take_is_rewritten_for_tensorrt_alone() -> None:
    ours, theirs = _names(clean_up(TARGET)), _names(clean_up(parse_target("tensorrt-rtx")))
    assert set(theirs) - set(ours) == {
        "cast-bytes", "convert-qoperator", "loosen-squeeze", "mend-quantized", "release-quantizers", "unroll-lstm",
        "write-out-attention", "write-out-tensor-scatter", "write-recurrent",
    }  # fmt: skip
    assert set(ours) - set(theirs) == {"fuse-hard-swish", "split-skip-norm"}


def test_the_newest_operators_are_written_out_for_the_older_parser() -> None:
    older, newer = _names(clean_up(parse_target("tensorrt"))), _names(clean_up(parse_target("tensorrt-rtx")))
    assert set(older) - set(newer) == {"write-out-rms-norm", "write-out-rotary", "write-out-swish"}


def test_channels_are_equalized_last_and_on_request() -> None:
    plain, equalized = _names(clean_up(TARGET)), _names(clean_up(TARGET, equalize=True))
    assert equalized == [*plain, "equalize-channels"]


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "tensorrt-rtx"])
def test_the_clean_up_gives_what_the_lowering_asks_for(target: str) -> None:
    chosen = parse_target(target)
    provided = frozenset(fact for one in clean_up(chosen).passes for fact in one.provides)
    assert provided >= NORMAL
    assert "insert-qdq" in _names(lowering(Plan.of([]), chosen, Ranges({}), {}))


@pytest.mark.parametrize(("target", "form"), [("onnxruntime", "integer"), ("tensorrt-rtx", "pairs")])
def test_a_dynamic_plan_is_lowered_in_the_form_of_the_target(target: str, form: str) -> None:
    plan = Plan.of([Decision("Y", "MatMul", DType.INT8, RULE, "why", 1)])
    found = lowering(plan, parse_target(target), Ranges({}), {})
    assert not {"insert-qdq", "insert-qdq-pairs", "quantize-outputs"} & {*_names(found)}
    (dynamic,) = (one for one in found.passes if isinstance(one, DynamicQuant))
    assert dynamic.form == form


def test_weights_are_stored_between_the_pairs_and_the_typing() -> None:
    names = _names(lowering(Plan.of([]), parse_target("tensorrt-rtx"), Ranges({}), {}, storing=[EliminateDead()]))
    at = names.index("eliminate-dead")
    assert names.index("insert-qdq-pairs") < at < names.index("high-precision")
    assert names[-1] == "legalize"
