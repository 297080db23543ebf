"""Running a graph in ONNX Runtime without copying its weights: the one place that knows that library's sessions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.errors import DataError, ModelError
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.made import let_go, solid
from qcompiler.ir.weights import is_packed, to_tensor
from qcompiler.runtime import fp8, plugins, randomness, schemas
from qcompiler.runtime.gpu.device import CPU_PROVIDER, Device
from qcompiler.runtime.memory import pool, readable, release_pages, shrinking, take_from_pool
from qcompiler.support.machine import available_processors
from qcompiler.support.memory import room

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.ir.made import Held

Shape = tuple[int | str | None, ...]
Source: TypeAlias = str | Path | models.Model | gs.Graph | tuple[onnx.ModelProto, Mapping[str, "Held"]]

# From 1.29 on its builds report to their maker from the moment they are imported, and keep a file among the temporary
# ones. Models and data are the user's, so that is off unless the environment says otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_DTYPES: dict[str, str] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
    **{f"tensor({name})": name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}
_UNKNOWN = re.compile(r"([\w.]*):(\w+)\(-?\d+\) is not a registered function/op")
_NO_KERNEL = re.compile(r"Could not find an implementation for (\w+)\((\d+)\) node with name '([^']*)'")
_LARGE = 1 << 20  # bytes of a weight from which a copy of it is worth sparing
_OLDEST = 7  # ONNX Runtime promises nothing for older opsets
_REUSED = "Shape mismatch attempting to re-use buffer"
_MISFITS = ("Required inputs", "Invalid Feed", "INVALID_ARGUMENT", "Got invalid dimensions")


class Session:
    """An ONNX Runtime session over a model file, a `Model`, a graph or a proto; on the CPU unless told otherwise.

    Weights of an in-memory graph are lent to ONNX Runtime, not serialized: they must outlive the session, which keeps
    a reference, and nobody may write to them. ONNX Runtime copies initializers that it is lent, so a quick session
    feeds the large ones as inputs: it reads those where they lie.

    Args:
        source: path, `Model`, `gs.Graph`, or a `ModelProto` with the weights that it marks as external, by name.
        outputs: names of the tensors to return, any tensors of the main graph; None for the model's own outputs.
        optimize: ONNX Runtime's graph optimisations. Always off for graphs with FP8, which they break on the CPU.
        quick: made for a handful of runs: neither optimisations nor repacked weights, so that it is there at once.
        threads: threads inside an operator; 0 for one per processor that this process may use.
        pooled: activations come from memory that all pooled sessions share, for sessions that are run in turns; each
            keeps its own otherwise, as long as it lives. `return_freed_memory` gives it back.
        draw: which numbers random operators give, the same in every run (see `randomness`); None leaves them random.
        profile: the beginning of the name of a file that lists every node that runs; None for no such file.
        older: where ONNX Runtime lacks the newest version of an operator, run the model in an older opset, if that says
            the same.
        device: where it runs, and where outputs stay (see `runtime.gpu.device.OnDevice`); None for the CPU.

    Raises:
        ModelError: ONNX Runtime refuses the model; the message has its reason. Or it cannot use the device.
    """

    def __init__(
        self,
        source: Source,
        *,
        outputs: Sequence[str] | None = None,
        optimize: bool = True,
        quick: bool = False,
        threads: int = 0,
        pooled: bool = False,
        draw: int | None = 0,
        profile: Path | None = None,
        older: bool = True,
        device: Device | None = None,
    ) -> None:
        import onnxruntime as ort

        self._device = device
        options = ort.SessionOptions()
        options.log_severity_level = 4  # its errors arrive as exceptions; printed as well they would only be noise
        options.intra_op_num_threads = threads or available_processors()
        options.inter_op_num_threads = 1
        plugins.load_into(options)
        # Weights in few bits: without this, ONNX Runtime rounds the activations beside them to INT8
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if quick:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        if pooled:
            pool()
            take_from_pool(options)
        self._label = str(source) if isinstance(source, str | Path) else "the model"
        self._lent: list[NDArray[Any]] = []
        self._fed: dict[str, Held] = {}
        content, has_fp8 = self._content(source, outputs, draw, options, quick=quick)
        if quick or not optimize or has_fp8:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = _open(content, options, device)
        except Exception as error:  # ONNX Runtime raises a class of its own for each kind of failure
            self._session = self._in_older(error, content, options, draw) if older else None
            if self._session is None:
                refused = _refused(error, source, self._label)
                refused.fed, refused.said = {}, reason(error)
                raise refused from error
        if device is not None and device.provider not in self._session.get_providers():
            raise ModelError(
                f"ONNX Runtime could not start its {device.provider} for {self._label}, and would run it on the CPU "
                "without a word: see the GPU's memory and its driver, or leave --device out"
            )
        release_pages(self._lent)
        # Where there is no room for all weights, each run reads its own and lets go of them
        kept = {name: one for name, one in self._fed.items() if isinstance(one, np.ndarray) and not room().tight}
        self._later = {name: one for name, one in self._fed.items() if name not in kept}
        self._readable = {name: readable(one) for name, one in kept.items()}
        self._given = {name: one.array for name, one in self._readable.items()}
        found = [value.name for value in self._session.get_outputs()]
        self.outputs: list[str] = list(outputs) if outputs is not None else found

    def _content(
        self, source: Source, outputs: Sequence[str] | None, draw: int | None, options: Any, *, quick: bool = False
    ) -> tuple[str | bytes, bool]:
        """What ONNX Runtime reads, and whether there is FP8 in it."""
        import onnxruntime as ort

        if isinstance(source, str | Path) and outputs is None:
            skeleton = models.skeleton(source)
            if skeleton is None or draw is None or not randomness.in_proto(skeleton):
                return str(source), skeleton is not None and fp8.in_proto(skeleton)
        if isinstance(source, str | Path):
            source = models.load(source)
        if isinstance(source, tuple):
            proto, weights = source
        else:
            proto, weights = models.to_proto(source.graph if isinstance(source, models.Model) else source)
        if draw is not None:
            proto = randomness.held(proto, draw)
        if outputs is not None:
            proto = _with_outputs(proto, outputs)
        if quick:
            proto, self._fed = _with_large_fed(proto, weights)
        proto, weights = _with_packed_inside(proto, weights)
        names = [name for name, array in weights.items() if array.size and name not in self._fed]
        self._lent = [np.ascontiguousarray(solid(weights[name])) for name in names]
        if names:
            options.add_external_initializers(names, [_lend(ort, array) for array in self._lent])
        content: bytes = proto.SerializeToString()
        return content, fp8.in_proto(proto)

    def _in_older(self, error: Exception, content: str | bytes | None, options: Any, draw: int | None) -> Any:
        """A session over the model in an older opset that has kernels for it and says the same; None without one."""
        lacking = _NO_KERNEL.search(str(error))
        if lacking is not None and isinstance(content, str):
            content, _ = self._content(models.load(content), None, draw, options)
        while lacking is not None and isinstance(content, bytes):
            content = _in_last_opset_before(content, int(lacking[2]))
            if content is None:
                return None
            try:
                return _open(content, options, self._device)
            except Exception as again:  # see above
                lacking = _NO_KERNEL.search(str(again))
        return None

    @property
    def inputs(self) -> dict[str, tuple[np.dtype[Any] | None, Shape]]:
        """dtype and shape of each input; dtype None where the input is no tensor or its type is not numpy's."""
        return described(value for value in self._session.get_inputs() if value.name not in self._fed)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Runs once and returns the outputs by name; on a device, as of `Device.run`.

        Raises:
            DataError: the feeds do not fit the graph.
            ModelError: a node fails on them; the message names it.
        """
        with self.holding():
            return self._run(feeds)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keeps weights that every run would read again, for as many runs as there are in the block."""
        if self._given.keys() >= self._later.keys():
            yield
            return
        now = {name: readable(solid(one)) for name, one in self._later.items()}
        self._given |= {name: one.array for name, one in now.items()}
        try:
            yield
        finally:
            self._given = {name: one for name, one in self._given.items() if name not in self._later}
            now.clear()
            for one in self._later.values():
                let_go(one)

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            given = {**feeds, **self._given}
            if self._device is None:
                values = self._session.run(self.outputs, given, shrinking() if room().tight else None)
            else:
                values = self._device.run(self._session, self.outputs, given)
        except Exception as error:  # see above
            text = reason(error)
            clash = _clash(self.inputs, feeds) if _REUSED in text else ""
            if clash:
                raise ModelError(
                    f"ONNX Runtime failed while running {self._label}: {clash}, and it relies on these names. Export "
                    "the model with a name for each size."
                ) from error
            if any(sign in f"{error} {text}" for sign in _MISFITS):
                shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feeds.items())
                misfit = DataError(
                    f"ONNX Runtime cannot run {self._label} on the feed ({shapes}): {text}. "
                    "Give each input the dtype and shape that `qcompiler inspect` lists."
                )
                misfit.fed, misfit.said = feeds, text
                raise misfit from error
            failed = ModelError(f"ONNX Runtime failed while running {self._label}: {text}.")
            failed.fed, failed.said = feeds, text
            raise failed from error
        return dict(zip(self.outputs, values, strict=True))

    def profile(self) -> Path:
        """Ends the profile that was asked for; returns the file, JSON with an event on each line."""
        return Path(self._session.end_profiling())


def _clash(inputs: Mapping[str, tuple[Any, Shape]], feeds: Mapping[str, NDArray[Any]]) -> str:
    """Two axes of inputs that have one name and different sizes in a feed, as a sentence; empty where none have."""
    known: dict[str, tuple[str, int]] = {}
    for name, (_, shape) in inputs.items():
        for axis, size in zip(shape, np.shape(feeds.get(name, ())), strict=False):
            if not isinstance(axis, str):
                continue
            first, other = known.setdefault(axis, (name, size))
            if size != other:
                return f"inputs '{first}' and '{name}' have {other} and {size} where the model says '{axis}' of both"
    return ""


def described(values: Iterable[Any]) -> dict[str, tuple[np.dtype[Any] | None, Shape]]:
    """dtype and shape of what ONNX Runtime's `get_inputs()` or `get_outputs()` gives, as in `Session.inputs`."""
    return {
        value.name: (
            np.dtype(_DTYPES[value.type]) if value.type in _DTYPES else None,
            tuple(dim if isinstance(dim, int) else (dim or None) for dim in value.shape or ()),
        )
        for value in values
    }


def _open(content: str | bytes, options: Any, device: Device | None) -> Any:
    """The session; without its change from INT8 to UINT8 where that is what fails (onnxruntime#25526, open in 1.31)."""
    import onnxruntime as ort

    providers = [CPU_PROVIDER] if device is None else device.providers
    options.use_deterministic_compute = device is not None
    try:
        return ort.InferenceSession(content, options, providers=providers)
    except Exception as error:  # a class of its own for each kind of failure
        if "output_dtype INT8 does not match" not in str(error):
            raise
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    return ort.InferenceSession(content, options, providers=providers)


def _in_last_opset_before(content: bytes, since: int) -> bytes | None:
    """The model in the last opset before that which brought an operator; None where that cannot say the same."""
    proto = onnx.ModelProto.FromString(content)
    if since <= _OLDEST or schemas.unsaid(proto, since - 1) is not None:
        return None
    for one in proto.opset_import:
        if one.domain in schemas.STANDARD:
            one.version = since - 1
    older: bytes = proto.SerializeToString()
    return older


def _refused(error: Exception, source: Source, label: str) -> ModelError:
    """Why there is no session, with what helps."""
    unknown = _UNKNOWN.search(str(error))
    if unknown:
        return _unknown_operator(source, *unknown.groups())
    lacking = _NO_KERNEL.search(str(error))
    if lacking is None:
        return ModelError(
            f"ONNX Runtime refuses {label}: {reason(error)}. Check the model with onnx.checker, or simplify the part "
            "that is named."
        )
    op, since, node = lacking.groups()
    types = _types(source, node)
    listed = f" ({', '.join(types)})" if types else ""
    return ModelError(
        f"ONNX Runtime has no kernel for node '{node}' ({op} of opset {since}) of {label} in its types{listed}: the "
        "model cannot be run over data, so nothing can be measured or compared. Export the model with "
        + (f"an opset below {since}" if int(since) > _OLDEST else f"opset {_OLDEST} or newer")
        + ", or with that part in other operators or types."
        + (" 'qcompiler build' takes what came quantized as it is, where the GPU has the type." * (op in _PAIRS))
    )


_PAIRS = ("QuantizeLinear", "DequantizeLinear")


def _types(source: Source, name: str) -> list[str]:
    """Element types that a node reads, each once; none where they are not known here."""
    graph = source.graph if isinstance(source, models.Model) else source
    if isinstance(source, str | Path):
        graph = models.load(source).graph
    if not isinstance(graph, gs.Graph):
        return []
    read = (tensor for node in graphs.walk(graph) if node.name == name for tensor in node.inputs)
    return list(dict.fromkeys(dtype.name for tensor in read if (dtype := graphs.dtype_of(tensor)) is not None))


def _unknown_operator(source: Source, domain: str, op: str) -> ModelError:
    """The error for a custom operator, with the nodes that are one."""
    if isinstance(source, str | Path):
        source = models.load(source)
    graph = source.graph if isinstance(source, models.Model) else source
    nodes = [f"'{node.name}'" for node in graphs.walk(graph) if node.op == op] if isinstance(graph, gs.Graph) else []
    where = f" ({', '.join(nodes[:3])}{' and others' * (len(nodes) > 3)})" if nodes else ""
    return ModelError(
        f"the model has nodes of the operator {op} of domain '{domain}'{where}, which ONNX Runtime does not know: the "
        "model cannot be run over data, so nothing can be measured or compared. Export it with standard operators, or "
        "give that operator as a function inside the model."
    )


def reason(error: BaseException) -> str:
    """The readable part of an ONNX Runtime message, on one line and without its source paths."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    text = re.sub(r"/\S*/onnxruntime/\S+:\d+\s+(?:[\w:<>~*&, ]+\([^)]*\)(?: const)?(?: \[with [^]]*\])?)?", "", text)
    return " ".join(text.split()).strip(" .")[:600]


def _with_large_fed(proto: onnx.ModelProto, weights: Mapping[str, Held]) -> tuple[onnx.ModelProto, dict[str, Held]]:
    """The proto with its large weights as inputs, in the types that numpy has, and what to feed them with."""
    known = {one.name for one in proto.graph.input}
    large = {
        one.name: one
        for one in proto.graph.initializer
        if one.name in weights
        and weights[one.name].nbytes >= _LARGE
        and _is_native(weights[one.name])
        and one.name not in known
    }
    if not large:
        return proto, {}
    left = [one for one in proto.graph.initializer if one.name not in large]
    fed = onnx.ModelProto()
    fed.CopyFrom(proto)
    del fed.graph.initializer[:]
    fed.graph.initializer.extend(left)
    for name, one in large.items():
        stated = fed.graph.input.add(name=name).type.tensor_type
        stated.elem_type = one.data_type
        for size in one.dims:
            stated.shape.dim.add(dim_value=size)
    return fed, {name: weights[name] for name in large}


def _with_packed_inside(
    proto: onnx.ModelProto, weights: Mapping[str, Held]
) -> tuple[onnx.ModelProto, Mapping[str, Held]]:
    """Weights of which several elements share a byte cannot be lent: numpy holds one a byte."""
    packed = {name: solid(one) for name, one in weights.items() if is_packed(one.dtype)}
    if not packed:
        return proto, weights
    inside = onnx.ModelProto()
    inside.CopyFrom(proto)
    for one in inside.graph.initializer:
        if one.name in packed:
            one.CopyFrom(to_tensor(one.name, packed[one.name]))
    return inside, {name: one for name, one in weights.items() if name not in packed}


def _is_native(array: Held) -> bool:
    return array.dtype.kind in "biuf" and array.dtype.name in _DTYPES.values()


def _lend(ort: Any, array: NDArray[Any]) -> Any:
    """An OrtValue over the array's own memory; types that numpy lacks go by their bytes."""
    if _is_native(array):
        return ort.OrtValue.ortvalue_from_numpy(array)
    raw = array.view(np.uint8 if array.itemsize == 1 else np.uint16)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, graphs.onnx_type(array.dtype))


def _with_outputs(proto: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """The proto with other outputs. The types are left open: ONNX Runtime infers them."""
    known = {value.name: value for value in proto.graph.output}
    del proto.graph.output[:]
    proto.graph.output.extend(known.get(name) or onnx.ValueInfoProto(name=name) for name in outputs)
    return proto
