"""Dual encoders such as CLIP, SigLIP and CLAP: two graphs, each from one kind of input to its embedding.

Each graph is the model's own forward, of which one embedding is kept: projection and normalisation are in it as the
class does them, and what the other input feeds falls away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qcompiler.errors import ModelError
from qcompiler.frontends.examples import Inputs, inputs_of
from qcompiler.frontends.kinds.encoder import Outputs, check, job_of
from qcompiler.frontends.kinds.parts import ModelKind, ModelPart
from qcompiler.frontends.sources import LoadedModule
from qcompiler.frontends.torch_onnx import FUNCTION

TOWERS = {"vision": ("pixel_values", "image_embeds"), "audio": ("input_features", "audio_embeds")}
"""The tower beside the one of text: what it reads, and what its embedding is called."""


def is_dual(model: Any) -> bool:
    """Whether text and something else are encoded side by side."""
    features = ("get_image_features", "get_audio_features")
    return hasattr(model, "get_text_features") and any(hasattr(model, one) for one in features)


def kind_of(loaded: LoadedModule) -> ModelKind:
    """Two graphs: text, and pictures or sound.

    Raises:
        ModelError: the model does not return one embedding for each.
    """
    model = loaded.module
    tower = "vision" if hasattr(model, "get_image_features") else "audio"
    other, embeds = TOWERS[tower]
    text = inputs_of(loaded, "input_ids")
    second = inputs_of(loaded, other)
    sides = {"text": (text, second, "text_embeds"), tower: (second, text, embeds)}
    parts = []
    for name, (own, rest, output) in sides.items():
        outputs = _one(loaded, rest, output)
        job = job_of(loaded, own, outputs, f"the {name} encoder of {loaded.name}")
        parts.append(ModelPart(name, job, check(loaded, own, outputs)))
    scales = ((one, getattr(model, one, None)) for one in ("logit_scale", "logit_bias", "logit_scale_t"))
    constants = tuple(
        (one, float(value.detach().exp() if "scale" in one else value.detach()))
        for one, value in scales
        if value is not None and value.numel() == 1
    )
    return ModelKind("dual encoder", parts, constants=constants)


def _one(loaded: LoadedModule, rest: Inputs, output: str) -> Outputs:
    """The function of one embedding: the model's forward, with a fixed sample in the place of the other input."""
    import torch

    fixed = {name: torch.from_numpy(value) for name, value in rest.example(1, 4).feeds.items()}

    def outputs(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        known = {name: value for name, value in fixed.items() if name not in tensors}
        found = loaded.module(**tensors, **known, return_dict=True)
        if not isinstance(getattr(found, output, None), torch.Tensor):
            raise ModelError(
                f"{loaded.name} ({type(loaded.module).__name__}) returns no '{output}', so its towers cannot be taken "
                f"apart. {FUNCTION}"
            )
        return {output: found[output]}

    return outputs
