"""LoRA adapters merged into the weights of their model: W + scale * B A, without peft.

An adapter lies beside the weights that it changes, or in a folder of its own that names the folder of its model.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler.errors import ModelError
from qcompiler.frontends.weights.reserve import Reserve, held

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE = "Merge it first: merge_and_unload() of peft's model, then save_pretrained"
_CHANGED = ("pissa", "olora", "corda", "loftq")
"""Initialisations that change the weights of the model too: the adapter alone does not say what they were."""
_FACTORS = re.compile(r"^(.*)\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)(?:\.[^.]+)??(?:\.(weight|bias))?$")
_UNFIT = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, ZeroDivisionError, re.error)
_SHOWN = 80
_SAVED = re.compile(r"^(.*?)(?:\.modules_to_save(?:\.default)?)?\.(weight|bias)$")


@dataclass(frozen=True)
class Adapter:
    """An adapter.

    Attributes:
        folder: where it lies.
        base: the folder of the model that it changes.
        said: its configuration.
    """

    folder: Path
    base: Path
    said: Mapping[str, Any]

    @property
    def files(self) -> tuple[Path, ...]:
        """What was read of it."""
        return self.folder / CONFIG, self.folder / WEIGHTS


def find(folder: Path) -> Adapter | None:
    """The adapter in a folder; None where there is none.

    Raises:
        ModelError: there is one that cannot be merged, or its model is nowhere.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"'{path}' cannot be read as JSON ({error}): fetch it again.") from error
    kind = str(said.get("peft_type") if isinstance(said, dict) else None)
    if kind.upper() != "LORA":
        raise ModelError(f"'{folder}' holds an adapter of kind {kind}, and only LoRA is merged here. {MERGE}.")
    start = str(said.get("init_lora_weights") or "").lower()
    if start.startswith(_CHANGED):
        raise ModelError(
            f"the adapter in '{folder}' was initialised by '{start}', which changes the weights of the model as "
            f"well, and how is not in the folder. {MERGE}."
        )
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(one.name for one in folder.glob("adapter_model.*"))
        more = f"only '{pickled[0]}', and nothing pickled is ever loaded" if pickled else "no weights of it"
        raise ModelError(f"'{path}' describes an adapter, and there is {more}: save it as {WEIGHTS}. {MERGE}.")
    return Adapter(folder, _base(folder, said), said)


def _base(folder: Path, said: Mapping[str, Any]) -> Path:
    if (folder / "config.json").is_file() and any(one.name != WEIGHTS for one in folder.glob("*.safetensors")):
        return folder
    named = str(said.get("base_model_name_or_path") or "")
    for place in (folder / named, Path(named)):
        if named and os.path.isfile(place / "config.json"):  # False where no path can be so long
            return place
    shown = named if len(named) <= _SHOWN else f"{named[:_SHOWN]}…"
    raise ModelError(
        f"'{folder}' holds an adapter, and the model that it changes ('{shown}') is no folder here, and nothing is "
        "fetched: name its folder as base_model_name_or_path in adapter_config.json, or put the adapter's two files "
        "into that folder."
    )


def merge(adapter: Adapter, module: Any, reserve: Reserve) -> tuple[str, ...]:
    """Puts an adapter into the weights of its model, in place: into those that are not in memory when they are read.

    Args:
        adapter: it.
        module: the model.
        reserve: its weights that are not in memory.

    Returns:
        Names of the layers that were changed or replaced.

    Raises:
        ModelError: its file is damaged, a tensor of it belongs to no layer, or does not fit its layer, or its
            configuration says what is no number or pattern.
    """
    from safetensors.torch import load_file

    try:
        tensors = load_file(adapter.folder / WEIGHTS)
    except Exception as error:  # safetensors' own errors have no common base
        raise ModelError(f"cannot load '{adapter.folder / WEIGHTS}': {error}. Fetch it again.") from error
    try:
        return _merged(adapter, module, tensors, reserve)
    except _UNFIT as error:
        text = " ".join(str(error).split())[:200].rstrip(".")
        raise ModelError(
            f"the adapter in '{adapter.folder}' cannot be merged, because its tensors do not fit each other or its "
            f"{CONFIG} ({type(error).__name__}: {text}): fetch it again. {MERGE}."
        ) from error


def _merged(adapter: Adapter, module: Any, tensors: Mapping[str, Any], reserve: Reserve) -> tuple[str, ...]:
    factors: dict[str, dict[str, Any]] = {}
    saved: dict[str, dict[str, Any]] = {}
    for key, value in tensors.items():
        name = key.removeprefix("base_model.model.")
        found, whole = _FACTORS.match(name), _SAVED.match(name)
        if found:
            part = found[2] + (".bias" if found[3] == "bias" else "")
            factors.setdefault(found[1], {})[part] = reserve.later(value.float())
        elif whole and "lora_" not in name:
            saved.setdefault(whole[1], {})[whole[2]] = reserve.weight(held(value)).float()
        else:
            raise ModelError(f"'{key}' of the adapter in '{adapter.folder}' is not known. {MERGE}.")
    for name, parts in saved.items():
        _replace(adapter, _layer(adapter, module, name), name, parts)
    for name, parts in factors.items():
        _add(adapter, _layer(adapter, module, name), name, parts)
    return tuple(sorted({*factors, *saved}))


def _layer(adapter: Adapter, module: Any, name: str) -> Any:
    prefix = str(getattr(module, "base_model_prefix", ""))
    for spelled in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
        try:
            return module.get_submodule(spelled)
        except AttributeError:
            continue
    raise ModelError(
        f"the adapter in '{adapter.folder}' changes '{name}', which {type(module).__name__} does not have: name the "
        f'class that it was made for as "architectures" in config.json. {MERGE}.'
    )


def _replace(adapter: Adapter, layer: Any, name: str, parts: Mapping[str, Any]) -> None:
    for kind, value in parts.items():
        before = getattr(layer, kind, None)
        if before is None or before.shape != value.shape:
            shape = None if before is None else tuple(before.shape)
            raise _misfit(adapter, f"{name}.{kind}", tuple(value.shape), shape)
        _set(layer, kind, value)


def _set(layer: Any, kind: str, value: Any) -> None:
    """A parameter of its own: what it was tied to stays as it is, as it does beside an adapter that is not merged."""
    import torch

    setattr(layer, kind, torch.nn.Parameter(value.contiguous(), requires_grad=False))


def _add(adapter: Adapter, layer: Any, name: str, parts: Mapping[str, Any]) -> None:
    import torch

    embedding = "lora_embedding_A" in parts
    first, second = (parts.get(f"lora_{'embedding_' if embedding else ''}{one}") for one in "AB")
    weight = getattr(layer, "weight", None)
    if first is None or second is None or weight is None:
        raise ModelError(
            f"the adapter in '{adapter.folder}' has not both factors of '{name}': fetch it again. {MERGE}."
        )
    scale = _scale(adapter.said, name, first.shape[0])
    delta = torch.einsum("or,r...->o...", second.reshape(second.shape[0], -1), first) * scale
    turned = embedding or type(layer).__name__ == "Conv1D"  # transformers' own, whose weight is [inputs, outputs]
    delta = delta.T if turned else delta
    if delta.shape != weight.shape:
        raise _misfit(adapter, name, tuple(delta.shape), tuple(weight.shape))
    made = weight.detach().float() + delta
    if "lora_magnitude_vector" in parts:  # DoRA: the direction of W + BA, with lengths of its own for each output
        rows = made.T if turned else made
        lengths = rows.flatten(1).norm(dim=1)
        rows = rows * (parts["lora_magnitude_vector"].flatten() / lengths).reshape(-1, *(1 for _ in rows.shape[1:]))
        made = rows.T if turned else rows
    elif adapter.said.get("use_dora"):
        raise ModelError(f"the adapter in '{adapter.folder}' is DoRA, and '{name}' has no magnitudes: fetch it again.")
    _set(layer, "weight", made)
    if "lora_B.bias" in parts:
        bias = getattr(layer, "bias", None)
        if bias is None:
            raise ModelError(f"the adapter in '{adapter.folder}' has a bias for '{name}', which has none. {MERGE}.")
        _set(layer, "bias", bias.detach().float() + scale * parts["lora_B.bias"])


def _scale(said: Mapping[str, Any], name: str, rank: int) -> float:
    """lora_alpha over the rank, or over its root (rsLoRA); patterns say other values for single layers."""
    alpha = float(_pattern(said.get("alpha_pattern"), name, said.get("lora_alpha") or rank))
    return alpha / (rank**0.5 if said.get("use_rslora") else rank)


def _pattern(patterns: Any, name: str, otherwise: Any) -> Any:
    found = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", name))
    return next(found, otherwise)


def _misfit(adapter: Adapter, name: str, found: tuple[int, ...], wanted: tuple[int, ...] | None) -> ModelError:
    return ModelError(
        f"the adapter in '{adapter.folder}' has {found} for '{name}', which is {wanted or 'not there'} in its model: "
        f"it belongs to another model, or to one with another vocabulary. {MERGE}."
    )


def note(adapter: Adapter, layers: tuple[str, ...]) -> Iterator[str]:
    """One sentence for the user."""
    kind = "DoRA" if adapter.said.get("use_dora") else "rsLoRA" if adapter.said.get("use_rslora") else "LoRA"
    where = "" if adapter.base == adapter.folder else f" of '{adapter.base}'"
    yield f"the {kind} adapter in '{adapter.folder}' is merged into {len(layers)} layers{where}"
