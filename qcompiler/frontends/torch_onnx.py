"""torch.nn.Module to ONNX through torch's dynamo exporter: the one place that calls it.

torch is imported inside the functions: nothing here loads it before a model is exported.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompiler.errors import ModelError, UsageError
from qcompiler.ir.from_proto import graph_from_proto
from qcompiler.ir.model import Model
from qcompiler.ir.to_proto import SMALLEST_EXTERNAL
from qcompiler.ir.weights import HeldWeights

OPSET = 18  # what the exporter's own decompositions are written for; `compile` raises it to what a target needs
LONGEST = 1 << 20  # of a free dimension; only torch's own bookkeeping needs an end
FUNCTION = (
    "Any module can be exported by a function that returns it with example inputs and the names of its free axes: "
    "qcompiler export file.py:build, where build() returns (module, {'x': tensor}, {'x': {0: 'batch'}})."
)
"""What to do where a kind of model is not known, or is not exported."""
EXTRA = "pip install 'onnx-qcompiler[torch]'"
Tensors = Mapping[str, Any]
"""torch tensors by name."""


@dataclass(frozen=True)
class Job:
    """One graph to make.

    Attributes:
        forward: function of tensors, in the order of `inputs`, that returns a tuple of tensors in that of `outputs`.
        owner: the module that has the weights.
        inputs: example tensors by name. Sizes of free dimensions must be 2 or more and differ from one another where
            the dimensions differ: torch takes 0, 1 and equal sizes for a property of the model.
        axes: by input, the names of its free dimensions by axis. Equal names are one dimension; a sum such as
            "past + sequence" is one that follows from others.
        outputs: names of the outputs.
        label: what it is called in messages.
        notes: what the user should know of how it is called.
    """

    forward: Callable[..., Any]
    owner: Any
    inputs: Tensors
    axes: Mapping[str, Mapping[int, str]]
    outputs: Sequence[str]
    label: str
    notes: tuple[str, ...] = ()


def need(*libraries: str) -> None:
    """Makes sure that optional libraries are there.

    Raises:
        UsageError: one is missing or does not load; the message says how to get it.
    """
    for library in libraries:
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise UsageError(
                f"exporting needs '{library}', which cannot be imported ({error}): {EXTRA}. Compiling ONNX files does "
                "not need it."
            ) from error


def trace(job: Job, opset: int = OPSET) -> Model:
    """The graph of a job. Its weights are torch's own memory: views of the module's, turned where the graph turns them.

    Raises:
        ModelError: torch cannot trace or convert the module; the message has its reason and what to try.
    """
    need("torch", "onnxscript")
    import torch

    module = _calling(job)
    with quiet(), torch.no_grad():
        try:
            program = _program(module, job, opset)
        except Exception as error:  # torch raises whatever goes wrong in tracing somebody's code
            raise ModelError(_refused(job, error)) from error
        return _model(program.model)


def _model(made: Any) -> Model:
    """What the exporter made, without writing its weights down in between."""
    import onnx_ir

    arrays: dict[str, Any] = {}
    for name, value in made.graph.initializers.items():
        held = value.const_value
        if held is None or held.nbytes < SMALLEST_EXTERNAL or held.dtype == onnx_ir.DataType.STRING:
            continue
        arrays[name] = held.numpy()
        beside = onnx_ir.ExternalTensor("beside", 0, held.nbytes, held.dtype, shape=held.shape, name=name)
        value.const_value = beside
    proto = onnx_ir.to_proto(made)
    return Model(graph_from_proto(proto, HeldWeights(arrays)), {}, None, proto.ir_version)


def _program(module: Any, job: Job, opset: int) -> Any:
    """The exporter's program; where the code has limits of its own for a free dimension, torch finds them."""
    try:
        return _exported(module, job, opset, _free(job))
    except Exception as error:
        free = [axes for axes in job.axes.values() if axes]
        if not free or "Constraint" not in str(error) + str(error.__cause__):
            raise
        return _exported(module, job, opset, _automatic(job))


def _exported(module: Any, job: Job, opset: int, shapes: tuple[dict[int, Any], ...]) -> Any:
    import torch

    return torch.onnx.export(
        module,
        tuple(job.inputs.values()),
        dynamo=True,
        input_names=list(job.inputs),
        output_names=list(job.outputs),
        dynamic_shapes=(shapes,),
        opset_version=opset,
        verbose=False,
    )


def _calling(job: Job) -> Any:
    """A module around a function; `inner` owns the weights, so that they get names."""
    import torch

    class Calling(torch.nn.Module):  # type: ignore[misc] # torch is not typed here
        def __init__(self) -> None:
            super().__init__()
            self.inner = job.owner

        def forward(self, *tensors: Any) -> Any:
            return job.forward(*tensors)

    return Calling().eval()


def _free(job: Job) -> tuple[dict[int, Any], ...]:
    """torch's description of the free dimensions; those that are sums are left for it to find out."""
    import torch

    names = {name for axes in job.axes.values() for name in axes.values() if name.isidentifier()}
    dims = {name: torch.export.Dim(name, min=0 if name == "past" else 1, max=LONGEST) for name in sorted(names)}
    automatic = torch.export.Dim.AUTO
    return tuple(
        {axis: dims.get(name, automatic) for axis, name in job.axes.get(key, {}).items()} for key in job.inputs
    )


def _automatic(job: Job) -> tuple[dict[int, Any], ...]:
    """torch's description of the free dimensions where it finds out itself which sizes they can have."""
    import torch

    return tuple(dict.fromkeys(job.axes.get(key, {}), torch.export.Dim.AUTO) for key in job.inputs)


def _refused(job: Job, error: Exception) -> str:
    return (
        f"torch cannot export {job.label} ({type(job.owner).__name__}): {reason(error)}. Its code may decide by the "
        "values of tensors, or use what ONNX has no operator for. Try a newer torch and transformers, or a module that "
        f"is rewritten without that part. {FUNCTION} An ONNX file that another tool made can be compiled as it is."
    )


def reason(error: BaseException) -> str:
    """The innermost cause in one line: torch wraps it into pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r"\s+", " ", lines[0] if lines else "").rstrip(".:")
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides the warnings, logs and progress bars of torch and transformers."""
    before = logging.root.manager.disable
    bars = _progress_bars(False)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # some bars are tqdm's own
        warnings.simplefilter("ignore")
        logging.disable(max(before, logging.ERROR))
        try:
            yield
        finally:
            logging.disable(before)
            if bars:
                _progress_bars(True)


def _progress_bars(wanted: bool) -> bool:
    """Switches transformers' progress bars, if it is there at all; whether they were on."""
    try:
        from transformers.utils import logging as messages
    except ImportError:
        return False
    were: bool = messages.is_progress_bar_enabled()
    (messages.enable_progress_bar if wanted else messages.disable_progress_bar)()
    return were
