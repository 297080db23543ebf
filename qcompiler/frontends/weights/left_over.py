"""What a class of transformers did not take from a folder, or had to make up: harmless, worth a warning, or refused.

A check against torch cannot find it, because the torch model lacks the same tensors.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler.errors import ModelError
from qcompiler.frontends.weights.checkpoint import FLOAT, Checkpoint
from qcompiler.frontends.weights.dequantize import Dequantized, some

_MADE = (
    r"(^|[._])(position_ids|token_type_ids|inv_freq|(cos|sin)_cached|masked_bias|causal_mask|attn_mask)$"
    r"|(^|\.)(relative_position_index|num_batches_tracked|_float_tensor|_extra_state|rotary_emb\..*)$"
)
"""Tables and counters that a class makes by itself."""
_HARMLESS = (
    rf"{_MADE}|(^|\.)pooler\.|^(optimizer|optim|ema_optimizer|lr_scheduler)\."
    r"|\.(exp_avg|exp_avg_sq|momentum_buffer)$"
)
"""These, poolers that a class does not have, and states of training."""
_ACTIVATIONS = (
    r"(^|[._])(input|output|act|activation|q|k|v|kv|k_cache|v_cache|prob)_(global_)?"
    r"(scales?|scale_inv|zero_point|amax)$"
)
"""How a quantized model rounds its activations at run time."""
_MEANS = (
    (r"lora_|(^|\.)(adapter|adapters|ia3|hada_|base_layer)\b|\bhada_", "an adapter"),
    (r"(^|[._])(scales?|scale_inv|scale_\d+|zero_points?|amax|SCB)$", "scales or zero points"),
    (r"(^|[._])(qweight|qzeros|g_idx|absmax|quant_map|weight_packed|weight_shape|weight_format|bitmask|codebooks)$",
     "quantized weights"),
)  # fmt: skip
"""Names of tensors that change what layers compute, by what they are."""
_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.npz")
_COPIES = r"^(consolidated|original)|^(pytorch_model|training_args|optimizer|scheduler|rng_state|scaler|random_states)"
"""Beginnings of the names of files that are the same weights in another form, or states of training."""


@dataclass(frozen=True)
class LeftOver:
    """What was not used.

    Attributes:
        harmless: tensors that mean nothing to the class.
        parts: tensors that may mean something: parts of the model that its class does not have.
    """

    harmless: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    def notes(self, name: str) -> Iterator[str]:
        """A sentence for the user where something may be missing; `name` is that of the class."""
        if self.parts:
            roots = sorted({_front(one) for one in self.parts})
            yield (
                f"{len(self.parts)} tensors of the checkpoint are not in the graph, because {name} does not have them: "
                f"{some(roots, 6)} ({some(self.parts, 3)}). If they are needed, name the class that they belong to as "
                '"architectures" in config.json'
            )


def judge(module: Any, told: Mapping[str, Any], stored: Checkpoint, read: Dequantized | None) -> LeftOver:
    """Sorts what the loader tells.

    Args:
        module: the model.
        told: transformers' report: `missing_keys`, `unexpected_keys`, `mismatched_keys`.
        stored: the checkpoint.
        read: what of it was dequantized.

    Raises:
        ModelError: weights are missing, misfit or are integers; or a tensor that changes what a layer of the model
            computes was dropped.
    """
    unused = sorted(told.get("unexpected_keys", ()))
    _refuse_incomplete(module, told, unused, stored)
    _refuse_integers(module, stored, read)
    owners = {name for name, _ in module.named_modules()}
    harmless, parts, lost = list(_passed_over(module, stored)), [], []
    for name in unused:
        ignored = _HARMLESS if read is None else f"{_HARMLESS}|{_ACTIVATIONS}"
        within = _within(name, owners, module)
        if re.search(ignored, name) or _is_mask(name, stored) or (within and _is_zero_bias(name, stored)):
            harmless.append(name)
        elif within or _means(name) == "an adapter":
            lost.append(name)
        else:
            parts.append(name)
    if lost:
        what = next((kind for kind in map(_means, lost) if kind), "weights of layers that the class has without them")
        raise ModelError(
            f"{len(lost)} tensors in '{stored.folder}' belong to layers of {type(module).__name__} and are not used by "
            f"it ({some(lost)}): {what}. Without them another model would be exported. {_remedy(what)}"
        )
    return LeftOver(tuple(sorted(set(harmless))), tuple(parts))


def _remedy(what: str) -> str:
    if what == "an adapter":
        return "Merge it first: merge_and_unload() of peft's model, then save_pretrained."
    if what.startswith("weights"):
        return 'Name the class that they belong to as "architectures" in config.json, or set what config.json lacks.'
    return "Export the float model that it was made from, or write float weights with the library that made it."


def _means(name: str) -> str:
    return next((kind for pattern, kind in _MEANS if re.search(pattern, name)), "")


def _refuse_incomplete(module: Any, told: Mapping[str, Any], unused: list[str], stored: Checkpoint) -> None:
    buffers = {name for name, one in module.named_buffers() if not one.is_floating_point()}
    missing = sorted(one for one in told.get("missing_keys", ()) if one not in buffers and not re.search(_MADE, one))
    odd = sorted(told.get("mismatched_keys", ()))
    if not missing and not odd:
        return
    if missing:
        what = f"{len(missing)} weights are missing ({some([repr(one) for one in missing])})"
    else:
        shapes = [f"'{name}' is {tuple(found)} and not {tuple(wanted)}" for name, found, wanted in odd]
        what = f"{len(odd)} weights misfit ({some(shapes, 2)})"
    rest = f" The folder has {len(unused)} that the class does not know ({some(unused, 3)})." if unused else ""
    raise ModelError(
        f"'{stored.folder}' is no complete {type(module).__name__}: {what} and would be random numbers.{rest} Name the "
        'class that the weights belong to as "architectures" in config.json, or fetch the folder again.'
    )


def _refuse_integers(module: Any, stored: Checkpoint, read: Dequantized | None) -> None:
    """Integers that were taken for the values of a weight: their scale is not in the file, or has another name."""
    taken = set() if read is None else {*read.layers, *read.used}
    own = dict(module.state_dict())
    wrong = [
        name
        for name, one in stored.tensors.items()
        if one.dtype not in FLOAT
        and not (name in taken or _is_mask(name, stored))
        and _is_float(name, own, str(module.base_model_prefix))
    ]
    if wrong:
        raise ModelError(
            f"{len(wrong)} weights in '{stored.folder}' are {stored.tensors[wrong[0]].dtype} and have no scale that is "
            f"known ({some(wrong)}): they are quantized, and what they mean is not certain. Export the float model "
            "that they were made from."
        )


def _is_float(name: str, own: Mapping[str, Any], prefix: str) -> bool:
    """Whether a tensor of the file became a float one of the model, with or without the prefix of the base model."""
    found = next((own[one] for one in _spelled(name, prefix) if one in own), None)
    if found is not None:
        return bool(found.is_floating_point())
    return name.endswith((".weight", ".bias")) and not re.search(_HARMLESS, name)


def _passed_over(module: Any, stored: Checkpoint) -> Iterator[str]:
    """Tensors of which the class itself says that it does not need them, and those that it makes by itself."""
    patterns = (*(getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()), _MADE)
    own, prefix = set(module.state_dict()), str(module.base_model_prefix)
    for name in stored.tensors:
        if own.isdisjoint(_spelled(name, prefix)) and any(re.search(pattern, name) for pattern in patterns):
            yield name


def _spelled(name: str, prefix: str) -> tuple[str, str, str]:
    """What a tensor may be called in the model: with or without the prefix of the base model."""
    return name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")


def _is_mask(name: str, stored: Checkpoint) -> bool:
    """GPT-2 and others store the triangle of their causal mask as the bias of attention."""
    one = stored.tensors.get(name)
    return one is not None and name.endswith(".bias") and len(one.shape) == 4 and one.shape[:2] == (1, 1)


def _is_zero_bias(name: str, stored: Checkpoint) -> bool:
    from safetensors import safe_open

    one = stored.tensors.get(name)
    if one is None or one.dtype not in FLOAT or not name.endswith(".bias"):
        return False
    with safe_open(one.file, framework="pt") as opened:
        return not bool(opened.get_tensor(name).count_nonzero())


def _within(name: str, owners: set[str], module: Any) -> bool:
    """Whether a tensor belongs to a layer that is in the graph, not to a part beside it."""
    for spelled in _spelled(name, str(module.base_model_prefix)):
        owner = spelled.rpartition(".")[0]
        while owner and owner not in owners:
            owner = owner.rpartition(".")[0]
        if owner and (_has_number(owner) or _has_weights(module, owner)):
            return True
    return False


def _has_number(owner: str) -> bool:
    return any(part.isdigit() for part in owner.split("."))


def _has_weights(module: Any, owner: str) -> bool:
    return any(True for _ in module.get_submodule(owner).parameters(recurse=False))


def _front(name: str) -> str:
    """The part of a model that a tensor belongs to, up to its first numbered layer."""
    parts = name.split(".")[:-1] or [name]
    return ".".join(parts[: next((at + 1 for at, one in enumerate(parts) if one.isdigit()), 2)])


def beside(stored: Checkpoint, used: Collection[Path] = ()) -> Iterator[str]:
    """Sentences on files with weights that are not in the graph; `used` are those of modules behind the class."""
    folder, known = stored.folder, {*stored.files, *used}
    others = sorted(path.relative_to(folder).as_posix() for path in _weight_files(folder) if path not in known)
    others = [name for name in others if not re.search(_COPIES, name)]
    if others:
        yield f"files with weights that are not in the graph, because the class does not read them: {some(others)}"


def _weight_files(folder: Path) -> Iterable[Path]:
    for pattern in _WEIGHT_FILES:
        yield from folder.glob(pattern)
        yield from folder.glob(f"*/{pattern}")
