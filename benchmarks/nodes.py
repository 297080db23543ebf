"""How time grows with the number of nodes: generated graphs through load, clean-up, plan and lowering.

    python -m benchmarks.nodes OUT [--sizes 1000,25000,50000] [--shapes chain,residual] [--runtime]

Weights and samples are tiny, so what is left is the cost of the graph itself. The shapes:

    chain       elementwise nodes, one behind the other
    residual    MatMul, Add, Relu, MatMul, Add, and an Add with the stream around them
    far         Adds of a short branch and of the first tensor: the longest shortcuts there are
    ifs         Ifs that stay, Ifs whose condition is constant, Ifs that only one rank of their result decides
    casts       nodes that stay FP32 between nodes that compute in FP16, so that Casts go everywhere; typed FP16
    shared      one constant that every second node reads, and identities to remove

Each cell runs in a process of its own. Seconds are processor time, which a busy machine moves least. A stand-in takes
the place of ONNX Runtime, whose own time grows faster than the graph; with --runtime it is the real one, and what it
takes for sessions and runs stands in a column apart. OUT gets `nodes.json`, `nodes.md` and `nodes.svg`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZES = (1000, 5000, 25000, 50000)
WIDTH, ROWS, SAMPLES = 16, 4, 2
PHASES = ("load", "clean up", "plan", "lower")
RUNTIME = "ONNX Runtime"
TINY = 4
ENDS = {"ReduceMin": -1.0, "ReduceMax": 1.0}
Row = Mapping[str, Any]


@dataclass
class Draft:
    """An ONNX graph in the making; each method adds a node and returns the name of its result."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def op(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node of one result."""
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_y"], name=name, **attributes))
        return f"{name}_y"

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """An initializer."""
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def product(self, x: str) -> str:
        """x times a matrix [WIDTH, WIDTH] that keeps its size about as it is."""
        return self.op("MatMul", x, self.constant(self.random.normal(0, WIDTH**-0.5, (WIDTH, WIDTH))))

    def branch(self, op: str, *inputs: str, shape: Sequence[int], **attributes: Any) -> onnx.GraphProto:
        """A nested graph of one node that reads tensors from around it."""
        name = f"{op}_{len(self.nodes)}_{len(self.weights)}_branch"
        node = helper.make_node(op, list(inputs), [f"{name}_y"], name=name, **attributes)
        result = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, shape)
        return helper.make_graph([node], name, [], [result])

    def model(self, y: str) -> onnx.ModelProto:
        """The model from x [ROWS, WIDTH] and a flag to y."""
        inputs = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, (ROWS, WIDTH)),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, ()),
        ]
        outputs = [helper.make_tensor_value_info(y, TensorProto.FLOAT, (ROWS, WIDTH))]
        graph = helper.make_graph(self.nodes, "nodes", inputs, outputs, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _chain(draft: Draft, x: str, _: int) -> str:
    x = draft.op("Mul", x, draft.constant(0.9))
    return draft.op("Add", draft.op("Tanh", x), draft.constant(np.full(WIDTH, 0.1)))


def _residual(draft: Draft, x: str, _: int) -> str:
    inner = draft.op("Add", draft.product(x), draft.constant(np.zeros(WIDTH)))
    outer = draft.op("Add", draft.product(draft.op("Relu", inner)), draft.constant(np.zeros(WIDTH)))
    return draft.op("Tanh", draft.op("Add", x, outer))


def _far(draft: Draft, x: str, _: int) -> str:
    return draft.op("Tanh", draft.op("Add", draft.op("Relu", x), "x"))


def _ifs(draft: Draft, x: str, turn: int) -> str:
    x = draft.op("Tanh", x)
    flag = draft.constant(True, np.bool_) if turn % 4 == 1 else "flag"
    if turn % 4 != 2:
        branches = [draft.branch(op, x, shape=(ROWS, WIDTH)) for op in ("Relu", "Abs")]
        return draft.op("If", flag, then_branch=branches[0], else_branch=branches[1])
    stacked = draft.op("Reshape", x, draft.constant((1, 1, ROWS, WIDTH), np.int64))
    axes = draft.constant([0], np.int64)
    kept = draft.branch("Identity", stacked, shape=(1, 1, ROWS, WIDTH))
    less = draft.branch("Squeeze", stacked, axes, shape=(1, ROWS, WIDTH))
    y = draft.op("If", flag, then_branch=kept, else_branch=less)
    kernel = draft.constant(np.ones((1, 1, 1, 1)))
    return draft.op("Reshape", draft.op("Conv", y, kernel), draft.constant((ROWS, WIDTH), np.int64))


def _casts(draft: Draft, x: str, _: int) -> str:
    positive = draft.op("Sigmoid", draft.product(x))
    return draft.op("Softmax", draft.op("Sqrt", positive))


def _shared(draft: Draft, x: str, _: int) -> str:
    half = draft.weights[0].name if draft.weights else draft.constant(np.full(WIDTH, 0.5))
    return draft.op("Identity", draft.op("Mul", draft.op("Softsign", x), half))


BLOCKS: dict[str, Callable[[Draft, str, int], str]] = {
    "chain": _chain,
    "residual": _residual,
    "far": _far,
    "ifs": _ifs,
    "casts": _casts,
    "shared": _shared,
}
PRECISIONS = {"casts": "fp16"}  # the others are INT8 with FP16 around it, the default


def generate(shape: str, size: int) -> onnx.ModelProto:
    """A model of about `size` nodes, those of nested graphs included."""
    draft, x, count, turn = Draft(), "x", 0, 0
    while count < size:
        before = len(draft.nodes)
        x = BLOCKS[shape](draft, x, turn)
        added = draft.nodes[before:]
        count += len(added) + sum(len(a.g.node) for node in added for a in node.attribute)
        turn += 1
    return draft.model(draft.op("Identity", x))


class StandIn:
    """Takes the place of an ONNX Runtime session: reads the model, computes nothing, gives numbers from -1 to 1.

    Graphs of a few nodes go to the real one: constants are folded by it.
    """

    def __init__(self, real: Any, content: bytes, options: Any, **others: Any) -> None:
        proto = onnx.ModelProto.FromString(content)
        self._real = real(content, options, **others) if len(proto.graph.node) <= TINY else None
        self._proto = proto.graph
        self._shapes = {value.name: _shape(value) for value in (*proto.graph.value_info, *proto.graph.output)}
        self._ends = {node.output[0]: ENDS[node.op_type] for node in proto.graph.node if node.op_type in ENDS}

    def get_inputs(self) -> Any:
        """As ONNX Runtime's."""
        return self._real.get_inputs() if self._real else [_Described(value) for value in self._proto.input]

    def get_outputs(self) -> Any:
        """As ONNX Runtime's."""
        return self._real.get_outputs() if self._real else [_Described(value) for value in self._proto.output]

    def run(self, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """The same numbers whatever is fed."""
        return self._real.run(names, feeds) if self._real else [self._value(name) for name in names]

    def _value(self, name: str) -> Any:
        if name in self._ends:
            return np.float32(self._ends[name])
        shape = self._shapes.get(name, (ROWS, WIDTH))
        return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


class _Described:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name, self.shape = value.name, _shape(value)
        self.type = "tensor(bool)" if value.type.tensor_type.elem_type == TensorProto.BOOL else "tensor(float)"


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    declared = value.type.tensor_type
    return tuple(dim.dim_value for dim in declared.shape.dim) if declared.HasField("shape") else (ROWS, WIDTH)


@contextmanager
def _runtime(*, real: bool) -> Iterator[Callable[[], float]]:
    """Counts the seconds that sessions take to be made and to run while the block lasts."""
    import onnxruntime

    spent = 0.0
    kind = onnxruntime.InferenceSession

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal spent
            began = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                spent += time.process_time() - began

        return call

    def opened(content: bytes, options: Any, **others: Any) -> Any:
        session = kind(content, options, **others) if real else StandIn(kind, content, options, **others)
        return SimpleNamespace(get_inputs=session.get_inputs, get_outputs=session.get_outputs, run=timed(session.run))

    onnxruntime.InferenceSession = timed(opened)
    try:
        yield lambda: spent
    finally:
        onnxruntime.InferenceSession = kind


def measure(shape: str, size: int, *, real: bool = False) -> dict[str, Any]:
    """Seconds of each phase on one generated graph, in this process."""
    from qcompiler.compiler.ask import ask
    from qcompiler.compiler.base import Compilation
    from qcompiler.compiler.stages.clean_up import clean_up
    from qcompiler.compiler.stages.decide import decide
    from qcompiler.compiler.stages.load import load
    from qcompiler.compiler.stages.lower import lower
    from qcompiler.compiler.stages.observe import observe
    from qcompiler.ir import model as models
    from qcompiler.recipe.recipe import Recipe

    random = np.random.default_rng(1)
    feeds = [{"x": random.normal(size=(ROWS, WIDTH)).astype(np.float32), "flag": np.array(True)}] * SAMPLES
    recipe = Recipe(precision=PRECISIONS.get(shape, "int8"), samples=SAMPLES, verify_samples=0, target="tensorrt-rtx")
    asked, run = ask(recipe, feeds, Path("nodes.onnx"), build=False), Compilation()
    spent: dict[str, float] = {RUNTIME: 0.0}
    with tempfile.TemporaryDirectory() as folder, _runtime(real=real) as runtime:
        path = Path(folder) / "model.onnx"
        onnx.save(generate(shape, size), path)

        @contextmanager
        def phase(name: str) -> Iterator[None]:
            began, apart = time.process_time(), runtime()
            yield
            spent[name] = time.process_time() - began - (runtime() - apart)

        with phase("load"):
            subject = run(load, path, feeds, asked.load)
        with phase("clean up"):  # without its check, which would hold every pass against a stand-in
            cleaned = run(clean_up, subject.with_(samples=None), asked.target, False)
        with phase("plan"):
            seen = run(observe, cleaned.with_(samples=subject.samples), asked.watch, asked.observe)
            decided = run(decide, seen, asked.target, asked.planning)
        with phase("lower"):
            lowered = run(lower, seen, decided, asked.target, asked.lower).model
            models.to_proto(lowered.graph)
        spent[RUNTIME] = runtime()
    return {"shape": shape, "size": size, "lowered": len(lowered.graph.nodes), "seconds": spent}


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Lines of Markdown, a row for each cell; `growth` is over the next smaller size of the shape, as is `nodes x`."""
    yield f"| shape | nodes | {' | '.join(PHASES)} | all | {RUNTIME} | nodes x | growth |"
    yield "|---" * (len(PHASES) + 6) + "|"
    before: dict[str, Row] = {}
    for row in rows:
        seconds, smaller = row["seconds"], before.get(row["shape"])
        shares = (
            ("", "") if smaller is None else (f"{row['size'] / smaller['size']:.1f}", f"{_growth(smaller, row):.2f}")
        )
        cells = [f"{seconds[phase]:.1f} s" for phase in PHASES]
        cells += [f"{_all(row):.1f} s", f"{seconds[RUNTIME]:.1f} s", *shares]
        yield f"| {row['shape']} | {row['size']} | {' | '.join(cells)} |"
        before[row["shape"]] = row


def _all(row: Row) -> float:
    return float(sum(row["seconds"][phase] for phase in PHASES))


def _growth(smaller: Row, row: Row) -> float:
    return _all(row) / _all(smaller)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Seconds over nodes, both logarithmic, a line for each shape beside one of slope 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for shape in dict.fromkeys(row["shape"] for row in rows):
        own = [row for row in rows if row["shape"] == shape]
        axes.plot([row["size"] for row in own], [_all(row) for row in own], marker="o", label=shape)
    first, last = min(row["size"] for row in rows), max(row["size"] for row in rows)
    least = min(map(_all, rows))
    axes.plot([first, last], [least, least * last / first], "--", color="grey", label="linear")
    axes.set(xscale="log", yscale="log", xlabel="nodes", ylabel="seconds of processor time")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table and writes the files; 0: done, 1: a cell failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nodes", description="Time over the number of nodes.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the results")
    parser.add_argument("--sizes", type=_sizes, default=SIZES, metavar="N,N", help="nodes of the graphs")
    parser.add_argument("--shapes", type=_shapes, default=tuple(BLOCKS), metavar="S,S", help=", ".join(BLOCKS))
    parser.add_argument("--runtime", action="store_true", help="run ONNX Runtime instead of a stand-in")
    parser.add_argument("--cell", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.cell:
        print(json.dumps(measure(options.shapes[0], options.sizes[0], real=options.runtime)))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for shape in options.shapes:
        for size in sorted(options.sizes):
            command = [sys.executable, "-m", "benchmarks.nodes", str(options.out), "--cell"]
            command += ["--shapes", shape, "--sizes", str(size), *(["--runtime"] if options.runtime else [])]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                print(f"error: {shape} of {size} nodes failed", file=sys.stderr)
                return 1
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            (options.out / "nodes.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = list(table(rows))
    print("\n".join(lines))
    (options.out / "nodes.md").write_text("\n".join(lines) + "\n")
    plot(rows, options.out / "nodes.svg")
    return 0


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _shapes(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    unknown = [name for name in chosen if name not in BLOCKS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no shape {unknown[0]!r}; there are {', '.join(BLOCKS)}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
