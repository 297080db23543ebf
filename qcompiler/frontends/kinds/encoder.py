"""Models without a cache: transformers' encoders of text, pictures and sound with their heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qcompiler.errors import ModelError
from qcompiler.frontends.check import Check, Compared, Run, compare
from qcompiler.frontends.examples import FRAMES, Example, Inputs, inputs_of, longest
from qcompiler.frontends.kinds.parts import ModelKind, ModelPart
from qcompiler.frontends.sources import LoadedModule
from qcompiler.frontends.torch_onnx import FUNCTION, Job, quiet, reason

BATCH, SEQUENCE = 2, 6
SIZES = ((3, 7, 2), (1, 1, 0), (2, 16, 5))
"""Of the check: batch, length, and how many tokens at the end of the first sequence are padding."""
Outputs = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Tensors by name into the outputs of a graph by name."""


def kind_of(loaded: LoadedModule, *, alone: bool = False) -> ModelKind:
    """One graph: a transformers model without a cache, as its class says what it reads and returns.

    Args:
        loaded: the model.
        alone: each call takes one row.

    Raises:
        ModelError: its inputs are not known, or it does not run on them.
    """
    inputs, model = inputs_of(loaded), loaded.module
    inputs = inputs.one_by_one() if alone else inputs
    note = f"the code of {type(model).__name__} fixes the number of rows while it is traced: one row a call"

    def outputs(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        return tensors_of(model(**tensors, return_dict=True))

    job = job_of(loaded, inputs, outputs, loaded.name)
    parts = (ModelPart("", job, check(loaded, inputs, outputs)),)
    if alone:
        return ModelKind("encoder", parts, notes=(note,))
    return ModelKind("encoder", parts, one_by_one=lambda: kind_of(loaded, alone=True))


def job_of(loaded: LoadedModule, inputs: Inputs, outputs: Outputs, label: str, owner: Any = None) -> Job:
    """How a function of a model is traced.

    Args:
        loaded: the model.
        inputs: what the function reads.
        outputs: the function.
        label: what the graph is called in messages.
        owner: the module that has the weights, if it is not the model itself.

    Raises:
        ModelError: it does not run on its inputs, or returns no tensors.
    """
    import torch

    length = SEQUENCE if "input_ids" in inputs.names else FRAMES
    example = {name: torch.from_numpy(value) for name, value in inputs.example(BATCH, length).feeds.items()}
    try:
        with torch.no_grad(), quiet():
            names = list(outputs(example))
    except ModelError:
        raise
    except Exception as error:  # transformers raises whatever its code meets
        given = ", ".join(f"{name} {tuple(value.shape)}" for name, value in example.items())
        raise ModelError(
            f"{label} ({type(loaded.module).__name__}) does not run on the inputs that its configuration describes "
            f"({given}): {reason(error)}. {FUNCTION}"
        ) from error
    if not names:
        raise ModelError(f"{label} ({type(loaded.module).__name__}) returns no tensors: there is nothing to export.")

    def forward(*tensors: Any) -> Any:
        found = outputs(dict(zip(inputs.names, tensors, strict=True)))
        return tuple(found[name] for name in names)

    return Job(forward, owner or loaded.module, example, inputs.axes, names, label, inputs.notes)


def tensors_of(found: Any) -> dict[str, Any]:
    """The tensors that a model returns, by name; lists of hidden states and the like are no outputs."""
    import torch

    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor) and value.dim()}


def check(loaded: LoadedModule, inputs: Inputs, outputs: Outputs) -> Check:
    """Compares with the model as its users call it: on a text with padding at the end, on pictures, on sound."""

    def each(run: Run) -> Iterator[Compared]:
        for batch, length, padded in SIZES:
            most = longest(loaded.module.config) if "input_ids" in inputs.names else length
            yield from _compare(run, inputs.example(batch, min(length, most), padded, seed=batch), outputs)

    return each


def _compare(run: Run, example: Example, outputs: Outputs) -> Iterator[Compared]:
    import torch

    with torch.no_grad(), quiet():
        want = outputs({name: torch.from_numpy(value) for name, value in example.feeds.items()})
    got = run(example.feeds)
    step = " ".join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in list(example.feeds.items())[:1])
    real = None if example.mask is None else example.mask.astype(bool)
    for name, tensor in want.items():
        ours, theirs = got[name], tensor.numpy()
        if real is not None and theirs.shape[:2] == real.shape == ours.shape[:2]:
            ours, theirs = ours[real], theirs[real]
        yield compare(step, name, ours, theirs)
