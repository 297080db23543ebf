"""transformers models as they are traced: masks, attention and experts in forms that ONNX and our passes take.

The model is changed in place and put back as it was. What it computes stays the same for every input:

* Attention is the "eager" one of the model's own code: two products with a softmax between them.
* Masks are made of ranges and comparisons. transformers' own look the padding up with GatherND.
* The recurrence of Mamba, a loop over the tokens, is computed by doubling: each step joins neighbours that are twice as
  far apart, so that a few steps serve any text of up to `LONGEST_SCAN` tokens. Longer ones do not run.
* Experts (transformers 5 keeps them as one array, and loops over those that the router hit, which depends on data)
  become one GLU of ordinary layers each. All of them compute all tokens; those that a token is not routed to get zeros
  at the input of their second layer and weight zero at the end. So each layer can be quantized for itself, and the
  ranges of the second ones see routed tokens only. The price is the arithmetic of the experts that were not hit.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

LONGEST_SCAN = 4096
"""Tokens that a recurrence can reach back."""
_REFUSAL = "Attention mask should be of size"


@contextlib.contextmanager
def exportable(model: Any) -> Iterator[None]:
    """The model in a form that can be traced, inside the `with` block."""
    with contextlib.ExitStack() as undo:
        undo.enter_context(_eager_attention(model))
        undo.enter_context(_plain_masks(_measures_masks(model)))
        undo.enter_context(_plain_repeats())
        undo.enter_context(_doubling_scans(model))
        undo.enter_context(_unrolled_experts(model))
        yield


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The module with dropout and the like off, inside the `with` block."""
    training = {name for name, module in model.named_modules() if module.training}
    model.eval()
    try:
        yield
    finally:
        for name, module in model.named_modules():
            module.training = name in training


@contextlib.contextmanager
def _eager_attention(model: Any) -> Iterator[None]:
    """The attention of their own code for all transformers models inside; put back by hand, as not all can be asked."""
    key = "_attn_implementation_internal"
    known = [one for one in model.modules() if hasattr(getattr(one, "config", None), key)]
    parts = [one.config for one in known]
    parts += [inner for one in parts for inner in vars(one).values() if hasattr(inner, key)]
    before = [(one, getattr(one, key)) for one in parts]
    try:
        for one in _outermost(model):
            if getattr(one.config, "_attn_implementation", None) not in (None, "eager"):
                one.set_attn_implementation("eager")
        for one in known:  # configurations of parts may be copies, which the whole does not reach
            if getattr(one.config, key) != "eager" and hasattr(one, "set_attn_implementation"):
                one.set_attn_implementation("eager")
        yield
    finally:
        for one, value in before:
            setattr(one, key, value)


def _outermost(model: Any) -> Iterator[Any]:
    """The transformers models in a module that lie in no other one."""
    if hasattr(model, "set_attn_implementation") and hasattr(model, "config"):
        yield model
        return
    for child in model.children():
        yield from _outermost(child)


@contextlib.contextmanager
def _plain_repeats() -> Iterator[None]:
    """Repeats of whole entries as an Expand: the exporter's own form of it runs at one number of repeats only."""
    import torch

    method, function = torch.Tensor.repeat_interleave, torch.repeat_interleave

    def repeated(tensor: Any, repeats: Any, dim: int | None = None, **more: Any) -> Any:
        if isinstance(repeats, torch.Tensor) or dim is None or more:
            return method(tensor, repeats, dim, **more)
        at = dim % tensor.dim()
        wide = tensor.unsqueeze(at + 1)
        sizes = [repeats if axis == at + 1 else -1 for axis in range(wide.dim())]
        return wide.expand(sizes).flatten(at, at + 1)

    torch.Tensor.repeat_interleave = repeated
    torch.repeat_interleave = repeated
    try:
        yield
    finally:
        torch.Tensor.repeat_interleave = method
        torch.repeat_interleave = function


@contextlib.contextmanager
def _plain_masks(whole: bool) -> Iterator[None]:
    """Overrides how masks for "eager" attention are made, in this process and for as long as the block runs.

    `whole` masks have an entry for each of the batch, also where nothing is padded.
    """
    try:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MAKERS
    except ImportError:  # models then make their masks themselves
        yield
        return
    original = MAKERS["eager"]
    MAKERS["eager"] = _mask_maker(original, whole)
    try:
        yield
    finally:
        del MAKERS["eager"]  # the override; what it hid is there again


def _measures_masks(model: Any) -> bool:
    """Whether attention of its own code refuses a mask that is broadcast over the batch, as that of TrOCR does."""
    homes = {type(one).__module__ for one in model.modules()}
    found = (sys.modules[home] for home in homes if home.startswith("transformers.models."))
    return any(_REFUSAL in inspect.getsource(one) for one in found)


def _mask_maker(original: Callable[..., Any], whole: bool) -> Callable[..., Any]:
    def mask(**options: Any) -> Any:
        import torch

        padding = options.get("attention_mask")
        odd = padding is not None and (padding.dim() != 2 or options.get("kv_offset", 0) != 0)
        if odd or options.get("use_vmap") or options.get("mask_function") is None:
            return original(**options)
        device, dtype = options.get("device", "cpu"), options.get("dtype", torch.float32)
        queries = options.get("cache_position")  # of older transformers, instead of length and offset
        if queries is None:
            queries = torch.arange(options["q_length"], device=device) + options.get("q_offset", 0)
        keys = torch.arange(options["kv_length"], device=device) + options.get("kv_offset", 0)
        one = torch.zeros((1, 1, 1, 1), dtype=torch.int64, device=device)
        allowed = options["mask_function"](one, one, queries[None, None, :, None], keys[None, None, None, :])
        if padding is not None:
            allowed = allowed & padding.to(torch.bool)[:, None, None, :]
        elif whole and "batch_size" in options:
            allowed = allowed.expand(options["batch_size"], -1, -1, -1)
        return torch.where(allowed, torch.zeros((), dtype=dtype, device=device), torch.finfo(dtype).min)

    return mask


@contextlib.contextmanager
def _doubling_scans(model: Any) -> Iterator[None]:
    """Puts `selective_scan` in the place of transformers' loop, in the Python modules of the model's layers."""
    name = "mamba_selective_scan"
    places = {id(one): one for part in model.modules() if (one := sys.modules.get(type(part).__module__)) is not None}
    before = [(one, getattr(one, name)) for one in places.values() if hasattr(one, name)]
    for one, _ in before:
        setattr(one, name, selective_scan)
    try:
        yield
    finally:
        for one, original in before:
            setattr(one, name, original)


def selective_scan(
    hidden_states: Any,
    dt: Any,
    A: Any,  # noqa: N803 # transformers' name, as are the next three
    B: Any,  # noqa: N803
    C: Any,  # noqa: N803
    D: Any = None,  # noqa: N803
    z: Any = None,
    delta_bias: Any = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> Any:
    """transformers' function of that name, whose states [batch, channels, tokens, states] are found by doubling."""
    from torch.nn import functional

    tokens = hidden_states.shape[2]
    dt = dt if delta_bias is None else dt + delta_bias.to(dt.dtype)[..., None]
    dt = functional.softplus(dt) if delta_softplus else dt
    decay = (A[None, :, None, :] * dt[:, :, :, None]).exp()
    state = (dt * hidden_states)[:, :, :, None] * B.transpose(1, 2)[:, None]
    state = state * hidden_states.new_ones(LONGEST_SCAN)[:tokens, None]  # a longer text does not fit, and does not run
    reach = 1
    while reach < LONGEST_SCAN:
        earlier = functional.pad(state, (0, 0, reach, 0))[:, :, :tokens]
        state = decay * earlier + state
        decay = decay * functional.pad(decay, (0, 0, reach, 0), value=1.0)[:, :, :tokens]
        reach *= 2
    result = (state * C.transpose(1, 2)[:, None]).sum(dim=-1)
    result = result if D is None else result + hidden_states * D[None, :, None]
    result = result if z is None else result * functional.silu(z)
    return (result, state[:, :, -1]) if return_last_state else result


@contextlib.contextmanager
def _unrolled_experts(model: Any) -> Iterator[None]:
    """Puts ordinary layers in the place of arrays of experts."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if _are_experts(child)
    ]
    for parent, name, child in found:
        setattr(parent, name, expert_layers(child))
    try:
        yield
    finally:
        for parent, name, child in found:
            setattr(parent, name, child)


def _are_experts(module: Any) -> bool:
    """Whether it is what transformers' `use_experts_implementation` decorates, in a form that is understood."""
    flags = ("has_bias", "is_transposed", "num_experts", "down_proj", "_apply_gate")
    return all(hasattr(module, flag) for flag in flags) and not getattr(module, "has_post_expert_norm", False)


def expert_layers(experts: Any) -> Any:
    """The experts as modules of linear layers that share memory with their arrays."""
    import torch

    gated = getattr(experts, "has_gate", True)  # transformers 5.0 does not say so: there all are
    plain = type(experts)._apply_gate.__name__ == "_default_apply_gate" and getattr(experts, "is_concatenated", True)

    def linear(name: str, expert: int, part: slice) -> Any:
        weight = getattr(experts, name).detach()[expert]
        weight = (weight.T if experts.is_transposed else weight)[part]
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=experts.has_bias, device="meta")
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        if experts.has_bias:
            bias = getattr(experts, f"{name}_bias").detach()[expert][part]
            layer.bias = torch.nn.Parameter(bias, requires_grad=False)
        return layer

    class Expert(torch.nn.Module):  # type: ignore[misc] # torch is not typed here
        def __init__(self, index: int) -> None:
            super().__init__()
            everything = slice(None)
            if not gated:
                self.up_proj = linear("up_proj", index, everything)
            elif not plain:
                self.gate_up_proj = linear("gate_up_proj", index, everything)
            else:
                axis = 2 if experts.is_transposed else 1
                half = experts.gate_up_proj.shape[axis] // 2
                self.gate_proj = linear("gate_up_proj", index, slice(0, half))
                self.up_proj = linear("gate_up_proj", index, slice(half, None))
            self.down_proj = linear("down_proj", index, everything)

        def forward(self, tokens: Any, hit: Any) -> Any:
            if not gated:
                inner = experts.act_fn(self.up_proj(tokens))
            elif not plain:
                inner = experts._apply_gate(self.gate_up_proj(tokens))
            else:
                inner = experts.act_fn(self.gate_proj(tokens)) * self.up_proj(tokens)
            return self.down_proj(torch.where(hit, inner, torch.zeros((), dtype=inner.dtype, device=inner.device)))

    class Experts(torch.nn.ModuleList):  # type: ignore[misc]
        def forward(self, tokens: Any, chosen: Any, weights: Any) -> Any:
            rows, total = tokens.unsqueeze(0), None  # three axes: torch then writes MatMul, as for every other layer
            for index, expert in enumerate(self):
                weight = (weights * (chosen == index)).sum(dim=-1, keepdim=True).to(tokens.dtype).unsqueeze(0)
                part = expert(rows, weight != 0) * weight
                total = part if total is None else total + part
            return None if total is None else total.squeeze(0)

    return Experts([Expert(index) for index in range(experts.num_experts)])
