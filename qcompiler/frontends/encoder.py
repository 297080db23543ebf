"""Models without a cache: transformers' encoders with their heads, vision models, and modules of other makers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qcompiler.errors import ModelError
from qcompiler.frontends.check import Check, Compared, Run, compare, token_ids
from qcompiler.frontends.sources import LoadedModule
from qcompiler.frontends.torch_onnx import Job, quiet

BATCH, SEQUENCE = 2, 6
SIZES = ((3, 7, 2), (1, 1, 0), (2, 16, 5))
"""Of the check: batch, sequence, and how many tokens at the end of the first sequence are padding."""


def job(loaded: LoadedModule) -> Job:
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


def _inputs(loaded: LoadedModule) -> tuple[str, ...]:
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


def _example(loaded: LoadedModule, name: str, batch: int, sequence: int) -> Any:
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


def check(loaded: LoadedModule, traced: Job) -> Check:
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


def _tokens(loaded: LoadedModule, batch: int, sequence: int, padded: int) -> tuple[Any, Any]:
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
