"""How a module is called: the tensors of its example inputs by name, and those in what it returns.

A graph has tensors as inputs and outputs; users call modules with dicts, lists, flags and None among them. Tensors are
taken out of the example, and put back into the same places whenever the module is called; all the rest stays what it
was.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompiler.errors import UsageError
from qcompiler.support.suggest import did_you_mean


@dataclass(frozen=True)
class _Slot:
    """The place of a tensor."""

    name: str


@dataclass(frozen=True)
class Call:
    """One way to call a module.

    Attributes:
        module: it.
        inputs: the tensors of the example by name: the parameter's, with `.key` or `.0` behind it for what lies in a
            dict or a list.
        arguments: what forward is given by parameter, with slots in the places of tensors.
    """

    module: Any
    inputs: Mapping[str, Any]
    arguments: Mapping[str, Any]

    def __call__(self, tensors: Mapping[str, Any]) -> Any:
        """What the module returns for other tensors in the places of the example's."""
        return self.module(**{name: _filled(value, tensors) for name, value in self.arguments.items()})


def call_of(module: Any, given: Any, label: str) -> Call:
    """Takes the tensors out of example inputs.

    Args:
        module: what is to be called.
        given: a mapping by the names of forward's parameters, a list or tuple in their order, or one tensor. Values
            may be tensors, arrays, numbers and flags (which stay fixed), None, and dicts and lists of these.
        label: what the module is called in messages.

    Raises:
        UsageError: there are no tensors among them, or forward has no such parameter.
    """
    named = _by_parameter(module, given, label)
    inputs: dict[str, Any] = {}
    arguments = {name: _emptied(value, name, inputs) for name, value in named.items()}
    if not inputs:
        raise UsageError(f"there is no tensor among the example inputs of {label}: a graph needs at least one.")
    known = _parameters(module)
    if "use_cache" in known and "use_cache" not in arguments and not any("past" in name for name in arguments):
        arguments["use_cache"] = False
    return Call(module, inputs, arguments)


def _parameters(module: Any) -> dict[str, Any]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {k: one for k, one in inspect.signature(module.forward).parameters.items() if one.kind in kinds}


def _by_parameter(module: Any, given: Any, label: str) -> dict[str, Any]:
    known = list(_parameters(module))
    if given is None or (isinstance(given, Mapping | list | tuple) and not given):
        raise UsageError(
            f"{label} is not a transformers model, so example inputs are needed: let the function return "
            f"(module, {{{', '.join(repr(name) + ': tensor' for name in known[:3])}}}), or give inputs= in Python."
        )
    if isinstance(given, Mapping):
        named = {str(name): value for name, value in given.items()}
        takes_any = any(one.kind == one.VAR_KEYWORD for one in inspect.signature(module.forward).parameters.values())
        for name in () if takes_any else named:
            if name not in known:
                raise UsageError(f"the forward of {label} has no parameter '{name}': {did_you_mean(name, known)}.")
        return named
    values = list(given) if isinstance(given, list | tuple) else [given]
    if len(values) > len(known):
        raise UsageError(
            f"{len(values)} example inputs are given, and the forward of {label} has {len(known)} parameters "
            f"({', '.join(known)}): give a dict of tensors by their names."
        )
    return dict(zip(known, values, strict=False))


def _emptied(value: Any, name: str, found: dict[str, Any]) -> Any:
    """The value with slots in the places of tensors, which are added to `found`."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        found[name] = torch.as_tensor(np.asarray(value) if isinstance(value, np.generic) else value)
        return _Slot(name)
    if isinstance(value, Mapping):
        return {key: _emptied(one, f"{name}.{key}", found) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_emptied(one, f"{name}.{at}", found) for at, one in enumerate(value)]
    return value


def _filled(value: Any, tensors: Mapping[str, Any]) -> Any:
    if isinstance(value, _Slot):
        return tensors[value.name]
    if isinstance(value, dict):
        return {key: _filled(one, tensors) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, tensors) for one in value]
    return value


def named(found: Any, taken: Sequence[str] = ()) -> dict[str, Any]:
    """The tensors in what a module returned, by name: keys of dicts, `output`, `output_0`; no two are equal.

    Args:
        found: tensors, dicts, lists, dataclasses and None, one inside the other.
        taken: names that are not free, such as those of the inputs: an output of that name gets `_out` behind it.
    """
    made: dict[str, Any] = {}
    for path, value in _tensors(found, ()):
        name = path[-1] if path else "output"
        if name.isdigit() or name in made:
            name = "_".join(("output", *path)) if path[0].isdigit() else "_".join(path)
        name = f"{name}_out" if name in taken else name
        made[name if name not in made else f"{name}_{len(made)}"] = value
    return made


def dropped(found: Any) -> list[str]:
    """What a module returned that is no tensor and not None, such as a cache: by name, with its class."""
    return [
        f"{'.'.join(path) or 'output'} ({type(value).__name__})"
        for path, value in _leaves(found, ())
        if not _is_tensor(value) and value is not None
    ]


def _tensors(found: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    return ((where, value) for where, value in _leaves(found, path) if _is_tensor(value))


def _leaves(found: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    inside = _members(found)
    if inside is None:
        yield path, found
        return
    for name, value in inside:
        yield from _leaves(value, (*path, name))


def _members(found: Any) -> Sequence[tuple[str, Any]] | None:
    """What lies inside of a dict, a list, a named tuple or a dataclass; None for what is none of them."""
    if isinstance(found, Mapping):
        return [(str(name), value) for name, value in found.items()]
    if isinstance(found, tuple) and hasattr(found, "_fields"):
        return [(name, getattr(found, name)) for name in found._fields]
    if isinstance(found, list | tuple):
        return [(str(at), value) for at, value in enumerate(found)]
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        return [(one.name, getattr(found, one.name)) for one in dataclasses.fields(found)]
    return None


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)
