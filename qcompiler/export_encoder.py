"""Models without a cache: transformers' encoders with their heads, vision models, and modules of other makers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qcompiler.errors import ModelError, UsageError
from qcompiler.export_check import Check, Compared, Run, compare, token_ids
from qcompiler.export_sources import Axes, Loaded
from qcompiler.export_torch import Job, quiet
from qcompiler.suggest import did_you_mean

BATCH, SEQUENCE = 2, 6
SIZES = ((3, 7, 2), (1, 1, 0), (2, 16, 5))
"""Of the check: batch, sequence, and how many tokens at the end of the first sequence are padding."""


def job(loaded: Loaded) -> Job:
    """How a transformers model without a cache is traced.

    Raises:
        ModelError: its inputs are neither tokens nor images.
    """
    import torch

    model, names = loaded.module, _inputs(loaded)
    inputs = {name: _example(loaded, name, BATCH, SEQUENCE) for name in names}
    axes = {name: {0: "batch"} if value.dim() > 2 else {0: "batch", 1: "sequence"} for name, value in inputs.items()}
    with torch.no_grad(), quiet():
        outputs = [name for name, _ in _outputs(model(**inputs, return_dict=True))]
    if not outputs:
        raise ModelError(f"{loaded.name} ({type(model).__name__}) returns no tensors: there is nothing to export.")

    def forward(*tensors: Any) -> Any:
        found = dict(_outputs(model(**dict(zip(names, tensors, strict=True)), return_dict=True)))
        return tuple(found[name] for name in outputs)

    return Job(forward, model, inputs, axes, outputs, loaded.name)


def _inputs(loaded: Loaded) -> tuple[str, ...]:
    """Names of the inputs: those of the tokenizer that the model takes."""
    model = loaded.module
    main = getattr(model, "main_input_name", "input_ids")
    known = inspect.signature(model.forward).parameters
    if main == "pixel_values":
        return (main,)
    if main != "input_ids" or "input_ids" not in known:
        raise ModelError(
            f"{loaded.name} ({type(model).__name__}) reads '{main}', and only models that read token ids or images are "
            "known: write a function that returns the module and example inputs, and export file.py:function."
        )
    wanted = getattr(loaded.tokenizer, "model_input_names", None) or ["input_ids", "attention_mask"]
    optional = [name for name in ("attention_mask", "token_type_ids") if name in wanted and name in known]
    return ("input_ids", *optional)


def _example(loaded: Loaded, name: str, batch: int, sequence: int) -> Any:
    import torch

    if name == "pixel_values":
        config = loaded.module.config
        size = getattr(config, "image_size", None)
        if size is None:
            raise ModelError(
                f"the configuration of {loaded.name} has no image_size: write a function that returns the module and "
                "example inputs, and export file.py:function."
            )
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        shape = (batch, getattr(config, "num_channels", 3), height, width)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))
    make = torch.zeros if name == "token_type_ids" else torch.ones
    return make(batch, sequence, dtype=torch.int64)


def _outputs(found: Any) -> Iterator[tuple[str, Any]]:
    """The tensors that a model returns, by name; lists of hidden states and the like are no outputs."""
    import torch

    for name, value in found.items():
        if isinstance(value, torch.Tensor) and value.dim():
            yield name, value


def check(loaded: Loaded, traced: Job) -> Check:
    """Compares with the model as its users call it, on tokens of a text with padding at the end, or on images."""

    def each(run: Run) -> Iterator[Compared]:
        for batch, sequence, padded in SIZES:
            if "pixel_values" in traced.inputs:
                feeds = {"pixel_values": _example(loaded, "pixel_values", batch, 0).numpy()}
                yield from _compare(loaded.module, run, feeds, None)
                continue
            ids, mask = _tokens(loaded, batch, min(sequence, _limit(loaded.module.config)), padded)
            feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            yield from _compare(loaded.module, run, {k: v for k, v in feeds.items() if k in traced.inputs}, mask)

    return each


def _limit(config: Any) -> int:
    longest = getattr(config, "max_position_embeddings", None) or 1 << 30
    return max(1, longest - 2)  # some count from the padding token's id on


def _tokens(loaded: Loaded, batch: int, sequence: int, padded: int) -> tuple[Any, Any]:
    config = loaded.module.config
    ids, _ = token_ids(loaded.tokenizer, config.vocab_size, batch * sequence)
    rows = np.asarray(ids, np.int64).reshape(batch, sequence)
    mask = np.ones_like(rows)
    if sequence > padded > 0:
        mask[0, sequence - padded :] = 0
    pad = getattr(config, "pad_token_id", None)
    return np.where(mask, rows, rows if pad is None else pad), mask


def _compare(model: Any, run: Run, feeds: Mapping[str, Any], mask: Any) -> Iterator[Compared]:
    import torch

    with torch.no_grad(), quiet():
        want = dict(_outputs(model(**{k: torch.from_numpy(v) for k, v in feeds.items()}, return_dict=True)))
    got = run(feeds)
    step = " ".join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in list(feeds.items())[:1])
    real = None if mask is None or "attention_mask" not in feeds else mask.astype(bool)
    for name, value in want.items():
        ours, theirs = got[name], value.numpy()
        if real is not None and theirs.shape[:2] == real.shape == ours.shape[:2]:
            ours, theirs = ours[real], theirs[real]
        yield compare(step, name, ours, theirs)


def plain_job(loaded: Loaded) -> Job:
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


def _given(loaded: Loaded) -> dict[str, Any]:
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


def plain_check(loaded: Loaded, traced: Job) -> Check:
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
