"""Segmentation by prompt, such as SAM: one graph encodes a picture, one makes masks of points in it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from qcompiler.frontends.check import Check, Compared, Run, compare
from qcompiler.frontends.examples import inputs_of
from qcompiler.frontends.kinds.encoder import check, job_of, tensors_of
from qcompiler.frontends.kinds.parts import Link, ModelKind, ModelPart
from qcompiler.frontends.sources import LoadedModule
from qcompiler.frontends.torch_onnx import Job, quiet

EMBEDDINGS = "image_embeddings"
PROMPTS = {
    "input_points": {0: "batch", 1: "prompts", 2: "points"},
    "input_labels": {0: "batch", 1: "prompts", 2: "points"},
}


def is_prompted(model: Any) -> bool:
    """Whether pictures are encoded once, and points turned into masks from there on."""
    known = inspect.signature(model.forward).parameters
    return hasattr(model, "get_image_embeddings") and {EMBEDDINGS, *PROMPTS} <= set(known)


def kind_of(loaded: LoadedModule) -> ModelKind:
    """Two graphs: vision, and decoder."""
    import torch

    model = loaded.module
    pictures = inputs_of(loaded, "pixel_values")

    def embeddings(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        found = model.get_image_embeddings(tensors["pixel_values"])
        several = found if isinstance(found, list | tuple) else [found]
        names = [EMBEDDINGS] if len(several) == 1 else [f"{EMBEDDINGS}_{at}" for at in range(len(several))]
        return dict(zip(names, several, strict=True))

    vision = job_of(loaded, pictures, embeddings, f"the picture encoder of {loaded.name}")
    example = torch.from_numpy(pictures.example(2, 1).feeds["pixel_values"])
    with torch.no_grad(), quiet():
        encoded = embeddings({"pixel_values": example})
    inputs = {**encoded, "input_points": _points(2, 3, 4, example.shape[-1])}
    inputs["input_labels"] = torch.ones(2, 3, 4, dtype=torch.int64)
    axes = {**{name: {0: "batch"} for name in encoded}, **PROMPTS}
    outputs = list(_masks(model, inputs))

    def forward(*tensors: Any) -> Any:
        found = _masks(model, dict(zip(inputs, tensors, strict=True)))
        return tuple(found[name] for name in outputs)

    masks = Job(forward, model, inputs, axes, outputs, f"the mask decoder of {loaded.name}")
    parts = (
        ModelPart("vision", vision, check(loaded, pictures, embeddings)),
        ModelPart("decoder", masks, _check(model, masks, list(encoded), int(example.shape[-1]))),
    )
    return ModelKind("prompted segmentation", parts, tuple(Link("vision", name, "decoder", name) for name in encoded))


def _masks(model: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Masks and scores of prompts, as the whole model makes them of an encoded picture."""
    encoded = [value for name, value in tensors.items() if name.startswith(EMBEDDINGS)]
    prompts = {name: tensors[name] for name in PROMPTS}
    return tensors_of(model(image_embeddings=encoded[0] if len(encoded) == 1 else encoded, **prompts))


def _points(batch: int, prompts: int, points: int, size: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, prompts, points, 2, generator=generator) * size


def _check(model: Any, traced: Job, encoded: list[str], size: int) -> Check:
    """Compares at other numbers of prompts and points, some of them of the ground, some none at all."""

    def each(run: Run) -> Iterator[Compared]:
        import torch

        for batch, prompts, points in ((2, 3, 4), (1, 1, 1), (1, 2, 5)):
            tensors = {name: traced.inputs[name][:batch] for name in encoded}
            tensors["input_points"] = _points(batch, prompts, points, size)
            labels = torch.arange(batch * prompts * points).reshape(batch, prompts, points) % 3
            tensors["input_labels"] = torch.where(labels == 2, -1, labels)
            with torch.no_grad(), quiet():
                want = _masks(model, tensors)
            got = run({name: value.numpy() for name, value in tensors.items()})
            for name, value in want.items():
                yield compare(f"{batch} x {prompts} prompts of {points} points", name, got[name], value.numpy())

    return each
