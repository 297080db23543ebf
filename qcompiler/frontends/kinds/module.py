"""A torch.nn.Module on example inputs: how it is traced, and at which sizes of its free axes it is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qcompiler.errors import ModelError, UsageError
from qcompiler.frontends.calling import Call, call_of, dropped, named
from qcompiler.frontends.check import Check, Compared, Run, compare
from qcompiler.frontends.kinds.parts import ModelKind, ModelPart
from qcompiler.frontends.sources import Axes, LoadedModule
from qcompiler.frontends.torch_onnx import Job, quiet
from qcompiler.support.suggest import did_you_mean

Sizes = Mapping[str, int]
"""Sizes of free dimensions by name."""


def kind_of(loaded: LoadedModule) -> ModelKind:
    """One graph: a module on the inputs that came with it.

    Raises:
        UsageError: there are no example inputs, or they do not fit its forward.
        ModelError: it does not run on them, or does not return tensors.
    """
    job, call = _job(loaded)
    return ModelKind("module", (ModelPart("", job, _check(loaded, job, call)),))


def _job(loaded: LoadedModule) -> tuple[Job, Call]:
    """How a module is traced on the inputs that came with it, and how it is called."""
    call, notes = call_of(loaded.module, loaded.inputs, loaded.name), []
    axes = _axes(call.inputs, loaded.axes)
    inputs = _twos(call.inputs, axes)
    if loaded.axes is None and _reason(call, inputs) and not _reason(call, call.inputs):
        notes.append(
            f"{loaded.name} runs on its example inputs and not with a longer first axis, so no dimension is free: "
            "return the names of those that may vary, by input and axis, as the third value"
        )
        axes, inputs = {name: {} for name in inputs}, dict(call.inputs)
    reason = _reason(call, inputs)
    if reason:
        raise ModelError(
            f"{loaded.name} fails on its example inputs: {reason}. Free dimensions are tried with size 2 where the "
            "example has 1: name those that may vary, by input and axis."
        )
    found = _run(call, inputs)
    outputs = named(found, tuple(inputs))
    odd = [one for one in (loaded.axes if isinstance(loaded.axes, Mapping) else ()) if one not in {**inputs, **outputs}]
    if odd:
        raise UsageError(f"free dimensions are given for '{odd[0]}': {did_you_mean(str(odd[0]), inputs)}.")
    if not outputs:
        raise ModelError(f"{loaded.name} returned no tensor but a {type(found).__name__}: there is nothing to export.")
    lost = dropped(found)
    if lost:
        notes.append(f"{loaded.name} also returns what is no tensor and no output of the graph: {', '.join(lost[:5])}")
    names = tuple(inputs)

    def forward(*tensors: Any) -> Any:
        return tuple(named(call(dict(zip(names, tensors, strict=True))), names).values())

    return Job(forward, loaded.module, inputs, axes, list(outputs), loaded.name, tuple(notes)), call


def _run(call: Call, inputs: Mapping[str, Any]) -> Any:
    import torch

    with torch.no_grad(), quiet():
        return call(inputs)


def _reason(call: Call, inputs: Mapping[str, Any]) -> str:
    """Why the module does not run on these inputs, in a line; empty where it does."""
    try:
        _run(call, inputs)
    except Exception as error:  # the user's code may raise anything
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}"
    return ""


def _axes(inputs: Mapping[str, Any], given: Any) -> dict[str, dict[int, str]]:
    """Free dimensions by input, axis and name; without any given, the first axis of those as long as the first's."""
    if given is None:
        batch = next((value.shape[0] for value in inputs.values() if value.dim()), 1)
        return {k: {0: "batch"} if value.dim() and value.shape[0] == batch else {} for k, value in inputs.items()}
    named_axes = given if isinstance(given, Mapping) else dict(zip(inputs, given, strict=False))
    made: dict[str, dict[int, str]] = {name: {} for name in inputs}
    for name, axes in named_axes.items():
        if name in inputs:  # torch.onnx.export takes those of outputs too, which follow from those of inputs
            made[name] = _of_input(str(name), axes, inputs[name].dim())
    return made


def _of_input(name: str, axes: Any, dims: int) -> dict[int, str]:
    """The axes of one input as a mapping to names, or as a list of axes."""
    listed = axes if isinstance(axes, Mapping) else {int(axis): f"{name}_{axis}" for axis in axes or ()}
    made: dict[int, str] = {}
    for axis, called in listed.items():
        at = int(axis) + dims if int(axis) < 0 else int(axis)
        if not 0 <= at < dims:
            raise UsageError(f"input '{name}' has {dims} axes, and axis {axis} is not one of them.")
        if called is not None:
            made[at] = str(getattr(called, "__name__", called))
    return made


def _twos(inputs: Mapping[str, Any], axes: Axes) -> dict[str, Any]:
    """The example with free dimensions of 2 or more: torch takes a 1 for a property of the model."""
    sizes = {name: max(size, 2) for name, size in _sizes(inputs, axes).items()}
    return _resized(inputs, axes, sizes)


def _sizes(inputs: Mapping[str, Any], axes: Axes) -> dict[str, int]:
    """Size of each free dimension; of those that are sums of others, nothing."""
    found: dict[str, int] = {}
    for name, value in inputs.items():
        for axis, called in axes[name].items():
            if " + " not in called:
                found[called] = max(found.get(called, 0), int(value.shape[axis]))
    return found


def _resized(inputs: Mapping[str, Any], axes: Axes, sizes: Sizes) -> dict[str, Any]:
    """The inputs with free dimensions of other sizes: cut, or repeated from the beginning."""
    import torch

    made = {}
    for name, value in inputs.items():
        for axis, called in axes[name].items():
            size = sum(sizes.get(one, 0) for one in called.split(" + "))
            if value.shape[axis] and size != value.shape[axis]:
                value = value.index_select(axis, torch.arange(size) % value.shape[axis])
        made[name] = value
    return made


def _check(loaded: LoadedModule, traced: Job, call: Call) -> Check:
    """Compares with the module on its example inputs, then with smaller and larger free dimensions.

    A size is one that the module has by its own code: 1, else half of the example's or one less; one more, else half as
    much again or twice as much.

    Raises:
        ModelError: there is a dimension that the module runs at no other size of.
    """

    def each(run: Run) -> Iterator[Compared]:
        for step, sizes in (("as traced", {}), *_others(loaded.name, traced, call)):
            tensors = _resized(traced.inputs, traced.axes, {**_sizes(traced.inputs, traced.axes), **sizes})
            want = named(_run(call, tensors), tuple(tensors))
            got = run({name: value.numpy() for name, value in tensors.items()})
            for name, value in want.items():
                yield compare(step, name, got[name], value.numpy())

    return each


def _others(label: str, traced: Job, call: Call) -> Iterator[tuple[str, Sizes]]:
    """Sizes to check at, all dimensions at once where the module takes that, else one after the other."""
    usual = _sizes(traced.inputs, traced.axes)

    def runs(sizes: Sizes) -> bool:
        return not _reason(call, _resized(traced.inputs, traced.axes, {**usual, **sizes}))

    found = {name: (_first(name, _smaller(n), runs), _first(name, _larger(n), runs)) for name, n in usual.items()}
    stuck = [name for name, (less, more) in found.items() if not less and not more]
    if stuck:
        raise ModelError(
            f"the free dimension '{stuck[0]}' of {label} has no other size than the {usual[stuck[0]]} of the example: "
            "the module itself runs with none that was tried. Leave it out of the axes, or write the module so that it "
            "takes others."
        )
    for step, at in (("smaller", 0), ("larger", 1)):
        single = [(name, sizes[at]) for name, sizes in found.items() if sizes[at]]
        together = dict(single)
        if together and runs(together):
            yield f"{step} ({_text(together)})", together
        else:
            yield from ((f"{step} ({name} {size})", {name: size}) for name, size in single)


def _first(name: str, sizes: list[int], runs: Callable[[Sizes], bool]) -> int:
    return next((size for size in sizes if runs({name: size})), 0)


def _smaller(size: int) -> list[int]:
    return [one for one in dict.fromkeys((1, size // 2, 3 * size // 4, size - 1)) if 0 < one < size]


def _larger(size: int) -> list[int]:
    return list(dict.fromkeys((size + 1, size + (size + 1) // 2, 2 * size)))


def _text(sizes: Sizes) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())
