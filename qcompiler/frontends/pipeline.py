"""sentence-transformers folders: what modules.json lists behind the Transformer becomes part of the graph.

Pooling, Dense, LayerNorm and Normalize are computed as that library computes them, of the files of the folder; the
library itself is not needed. The output is `sentence_embedding`, [batch, width].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler.errors import ModelError

Step = Callable[[Any, Any], Any]
"""A tensor and the mask of its tokens into another tensor."""
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Keys of a pooling's config.json, and what each asks for, in the order in which several are joined."""
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU", "ELU", "Mish", "Hardtanh", "ReLU6")
_WHAT_TO_DO = (
    "Write a function that returns the whole pipeline as one module with example inputs, and export file.py:function; "
    "or remove modules.json to export the Transformer alone"
)


@dataclass(frozen=True)
class Listed:
    """A module of the pipeline.

    Attributes:
        kind: its class, such as "Pooling".
        folder: where its files are.
    """

    kind: str
    folder: Path


def listed(folder: Path) -> tuple[Listed, ...]:
    """The modules behind the Transformer; none where the folder is no sentence-transformers model.

    Raises:
        ModelError: modules.json cannot be read, or lists what is not known.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return ()
    try:
        found = [(str(one["type"]).rpartition(".")[2], str(one["path"])) for one in json.loads(path.read_text("utf8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"'{path}' lists no modules of sentence-transformers ({error}): fetch it again.") from error
    if not found or found[0][0] != "Transformer":
        first = found[0][0] if found else "nothing"
        raise ModelError(f"'{path}' begins with {first}, and a pipeline begins with a Transformer. {_WHAT_TO_DO}.")
    odd = [f"{kind} ({at})" if at else kind for kind, at in found[1:] if kind not in _BUILDERS]
    if odd:
        raise ModelError(
            f"'{path}' lists {', '.join(odd)}, which is not known: known are {', '.join(_BUILDERS)}. {_WHAT_TO_DO}."
        )
    return tuple(Listed(kind, folder / at) for kind, at in found[1:])


def transformer(folder: Path) -> Path:
    """Where the Transformer of a pipeline lies, which older folders have in a folder of its own."""
    try:
        inside = folder / str(json.loads((folder / "modules.json").read_text("utf8"))[0]["path"])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return folder  # whatever is wrong with it, `listed` says
    return inside if (inside / "config.json").is_file() else folder


def files(modules: Sequence[Listed]) -> tuple[Path, ...]:
    """The files that the modules are made of."""
    folders = [one.folder for one in modules if one.folder.is_dir()]
    return tuple(sorted(path for folder in folders for path in folder.iterdir() if path.is_file()))


def pipeline(model: Any, modules: Sequence[Listed]) -> Any:
    """The whole pipeline as one torch module, whose `transformer` is the model.

    Raises:
        ModelError: a file of a module is missing, or says what is not known.
    """
    import torch

    layers: list[Any] = []
    steps: list[Step] = []
    for one in modules:
        step, layer = _BUILDERS[one.kind](one.folder)
        steps.append(step)
        if layer is not None:
            layers.append(layer)

    class SentenceEncoder(torch.nn.Module):  # type: ignore[misc] # torch is not typed here
        def __init__(self) -> None:
            super().__init__()
            self.transformer = model
            self.behind = torch.nn.ModuleList(layers)
            self.config = model.config
            self.main_input_name = model.main_input_name

        def forward(self, **inputs: Any) -> Any:
            mask = inputs.get("attention_mask")
            value = self.transformer(**inputs, return_dict=True)[0]
            if mask is None:
                mask = torch.ones(value.shape[:2], dtype=torch.int64)
            for step in steps:
                value = step(value, mask)
            return value

    return SentenceEncoder().eval()


def _described(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text("utf8"))
    except FileNotFoundError as error:
        raise ModelError(f"there is no '{path}', which modules.json needs: fetch the whole folder again.") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"'{path}' cannot be read as JSON ({error}): fetch it again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"'{path}' describes no module of sentence-transformers: fetch it again.")
    return content


def _weights(folder: Path, wanted: Sequence[str]) -> dict[str, Any]:
    """The tensors of a module in float32."""
    import torch
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    if not path.is_file():
        pickled = sorted(one.name for one in folder.glob("*.bin"))
        raise ModelError(
            f"'{folder}' has no model.safetensors"
            + (f", only '{pickled[0]}', and nothing pickled is ever loaded" if pickled else "")
            + f": save the model with safetensors, or fetch the folder again. {_WHAT_TO_DO}."
        )
    try:
        found = load_file(path)
    except Exception as error:  # safetensors' own errors have no common base
        raise ModelError(f"cannot load '{path}': {error}. Fetch it again.") from error
    odd = sorted(set(found) ^ set(wanted))
    if odd:
        raise ModelError(f"'{path}' has {sorted(found)} where {sorted(wanted)} are expected: fetch it again.")
    return {name: value.to(torch.float32) for name, value in found.items()}


def _pooling(folder: Path) -> tuple[Step, Any]:
    said = _described(folder)
    mode = said.get("pooling_mode")
    named = [one.strip().lower() for one in (mode.split("+") if isinstance(mode, str) else list(mode or ()))]
    flagged = [kind for flag, kind in _FLAGS.items() if said.get(flag, kind == "mean")]  # mean unless it says no
    unknown = [key for key, value in said.items() if key.startswith("pooling_mode_") and value and key not in _FLAGS]
    modes = named or [*flagged, *unknown]
    odd = [one for one in modes if one not in _FLAGS.values()]
    if odd or not modes:
        raise ModelError(
            f"'{folder / 'config.json'}' pools by {', '.join(odd) or 'nothing'}, which is not known: known are "
            f"{', '.join(_FLAGS.values())}. {_WHAT_TO_DO}."
        )

    def step(states: Any, mask: Any) -> Any:
        import torch

        parts = [_pooled(one, states, mask) for one in _FLAGS.values() if one in modes]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    return step, None


def _pooled(mode: str, states: Any, mask: Any) -> Any:
    """States of tokens [batch, sequence, width] into one of each text."""
    import torch

    seen = mask.unsqueeze(-1).to(states.dtype)
    if mode == "cls":
        return states[:, 0]
    if mode == "lasttoken":  # the last one that is no padding
        places = torch.arange(mask.shape[1]).unsqueeze(0)
        last = (places * mask).amax(dim=1, keepdim=True)
        return (states * seen * (places == last).unsqueeze(-1).to(states.dtype)).sum(dim=1)
    if mode == "max":
        return torch.where(seen == 0, -1e9, states).amax(dim=1)
    if mode == "weightedmean":
        seen = seen * torch.arange(1, mask.shape[1] + 1).to(states.dtype).reshape(1, -1, 1)
    summed, count = (states * seen).sum(dim=1), seen.sum(dim=1).clamp(min=1e-9)
    return summed / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


def _dense(folder: Path) -> tuple[Step, Any]:
    import torch

    said = _described(folder)
    given = said.get("activation_function", "Tanh")
    name = "Identity" if given is None else str(given).rpartition(".")[2]
    place = str(said.get("module_input_name") or "sentence_embedding")
    if place != "sentence_embedding" or said.get("module_output_name") not in (None, place):
        raise ModelError(
            f"'{folder / 'config.json'}' applies a dense layer to '{place}', and only those of the sentence's "
            f"embedding are known. {_WHAT_TO_DO}."
        )
    if name not in _ACTIVATIONS:
        raise ModelError(
            f"'{folder / 'config.json'}' has the activation '{name}', which is not known: known are "
            f"{', '.join(_ACTIVATIONS)}. {_WHAT_TO_DO}."
        )
    biased = bool(said.get("bias", True))
    weights = _weights(folder, ("linear.weight", *(["linear.bias"] if biased else [])))
    linear = torch.nn.Linear(*reversed(weights["linear.weight"].shape), bias=biased)
    linear.load_state_dict({key.removeprefix("linear."): value for key, value in weights.items()})
    activation = getattr(torch.nn, name)()
    return (lambda value, mask: activation(linear(value))), linear


def _layer_norm(folder: Path) -> tuple[Step, Any]:
    import torch

    weights = _weights(folder, ("norm.weight", "norm.bias"))
    norm = torch.nn.LayerNorm(weights["norm.weight"].shape[0])
    norm.load_state_dict({key.removeprefix("norm."): value for key, value in weights.items()})
    return (lambda value, mask: norm(value)), norm


def _normalize(folder: Path) -> tuple[Step, Any]:
    import torch

    return (lambda value, mask: torch.nn.functional.normalize(value, p=2, dim=1)), None


def _dropout(folder: Path) -> tuple[Step, Any]:
    return (lambda value, mask: value), None


_BUILDERS: Mapping[str, Callable[[Path], tuple[Step, Any]]] = {
    "Pooling": _pooling,
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": _normalize,
    "Dropout": _dropout,
}
"""By the class that modules.json names: what makes the step of a module, and its layer if it has one."""
