"""A torch.nn.Module without a decoder or encoder around it: how it is called and checked."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from qcompiler.errors import ModelError, UsageError
from qcompiler.frontends.check import Check, Compared, Run, compare
from qcompiler.frontends.sources import Axes, LoadedModule
from qcompiler.frontends.torch_onnx import Job, quiet
from qcompiler.support.suggest import did_you_mean


def plain_job(loaded: LoadedModule) -> Job:
    """How a module that is not transformers' is traced.

    Raises:
        UsageError: there are no example inputs, or they do not fit its forward.
        ModelError: it does not run on them, or does not return tensors.
    """
    import torch

    inputs = _given(loaded)
    axes = _axes(inputs, loaded.axes)
    inputs = {name: _two(value, axes[name]) for name, value in inputs.items()}
    model, names = loaded.module, tuple(inputs)
    with torch.no_grad(), quiet():
        try:
            outputs = [name for name, _ in _named(model(**inputs))]
        except Exception as error:  # the user's code may raise anything
            text = " ".join(str(error).split())[:300].rstrip(".")
            raise ModelError(
                f"{loaded.name} fails on its example inputs: {type(error).__name__}: {text}. Free dimensions are tried "
                "with size 2 where the example has 1: name those that may vary, by input and axis."
            ) from error

    def forward(*tensors: Any) -> Any:
        return tuple(value for _, value in _named(model(**dict(zip(names, tensors, strict=True)))))

    return Job(forward, model, inputs, axes, outputs, loaded.name)


def _given(loaded: LoadedModule) -> dict[str, Any]:
    import torch

    known = [name for name, one in inspect.signature(loaded.module.forward).parameters.items() if one.kind < 4]
    given = loaded.inputs
    if not given:
        raise UsageError(
            f"{loaded.name} is not a transformers model, so example inputs are needed: let the function return "
            f"(module, {{{', '.join(repr(name) + ': tensor' for name in known[:3])}}}), or give inputs= in Python."
        )
    named = dict(given) if isinstance(given, Mapping) else None
    if named is None:
        raise UsageError(f"the example inputs of {loaded.name} must be a dict of tensors by name.")
    for name in named:
        if name not in known:
            raise UsageError(f"the forward of {loaded.name} has no parameter '{name}': {did_you_mean(name, known)}.")
    return {name: torch.as_tensor(value) for name, value in named.items()}


def _axes(inputs: Mapping[str, Any], given: Axes | None) -> dict[str, dict[int, str]]:
    if given is None:
        return {name: {0: "batch"} if value.dim() else {} for name, value in inputs.items()}
    for name, axes in given.items():
        if name not in inputs:
            raise UsageError(f"free dimensions are given for '{name}': {did_you_mean(name, inputs)}.")
        wrong = [axis for axis in axes if not 0 <= axis < inputs[name].dim()]
        if wrong:
            raise UsageError(f"input '{name}' has {inputs[name].dim()} axes, and axis {wrong[0]} is not one of them.")
    return {name: dict(given.get(name, {})) for name in inputs}


def _two(value: Any, axes: Mapping[int, str]) -> Any:
    """The example with free dimensions of 2 or more: torch takes a 1 for a property of the model."""
    for axis in axes:
        if value.shape[axis] < 2:
            value = value.repeat_interleave(2, dim=axis)
    return value


def _named(found: Any, prefix: str = "output") -> Iterator[tuple[str, Any]]:
    """The tensors in what a module returned, with names."""
    import torch

    if isinstance(found, torch.Tensor):
        yield prefix, found
    elif isinstance(found, Mapping):
        for name, value in found.items():
            yield from _named(value, str(name))
    elif isinstance(found, list | tuple):
        for index, value in enumerate(found):
            yield from _named(value, f"{prefix}_{index}")


def plain_check(loaded: LoadedModule, traced: Job) -> Check:
    """Compares with the module on its example inputs, then with free dimensions of size 1 and of one more."""

    def each(run: Run) -> Iterator[Compared]:
        import torch

        for step, change in (("as traced", 0), ("free dimensions 1", -1), ("free dimensions + 1", 1)):
            if change and not any(traced.axes.values()):
                return
            tensors = {name: _resized(value, traced.axes[name], change) for name, value in traced.inputs.items()}
            with torch.no_grad(), quiet():
                want = dict(_named(loaded.module(**tensors)))
            got = run({name: value.numpy() for name, value in tensors.items()})
            for name, value in want.items():
                yield compare(step, name, got[name], value.numpy())

    return each


def _resized(value: Any, axes: Mapping[int, str], change: int) -> Any:
    """Free dimensions of size 1, or longer by one entry, a repeated one."""
    import torch

    for axis in axes:
        first = value.narrow(axis, 0, 1)
        if change:
            value = first if change < 0 else torch.cat([value, first], dim=axis)
    return value
