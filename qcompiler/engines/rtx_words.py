"""What TensorRT-RTX's builder says, in words: what is wrong, at which node, and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

CUT = (
    "end the model in front of it and run the rest behind the engine: onnx.utils.extract_model writes the part between "
    "the inputs and tensors that you name"
)
REMEDIES: Final = (
    (
        r"HW-specific datatypes: fp8",
        "FP8 needs sm89 or newer: leave the older SMs out of --target, or use --precision int8",
    ),
    (r"HW-specific datatypes: fp4", "FP4 needs sm120 or newer: leave the older SMs out of --target"),
    (r"Turing \(SM75\)", "sm75 lacks this type: leave it out of --target, or use --high-precision fp16"),
    (r"have to be the same type", "both operands of a product must be quantized to the same type"),
    (
        r"within workspace limit",
        "a kernel needs more scratch memory than there is: smaller largest shapes (--shapes) need less",
    ),
    (r"only allowed before DQ", "a quantized constant must go straight into a DequantizeLinear"),
    (r"no runners that implement it", f"{CUT}. Or choose another target"),
    (r"K exceeds the maximum value", f"ask it for fewer values, or {CUT}"),
    (r"BuildCanceled", "the build was cancelled"),
)
KEEP = "if it names a quantized node, keep that in high precision with --keep"

_MEANT = (  # what the library says, and what that means
    (
        r"Assertion !layerImpls\.empty\(\) failed\. \S+ has no runners that implement it",
        "it has no kernel for this operator",
    ),
    (r"I\w+Layer (\S+?): \1: ", ""),
)


def plain(words: str) -> str:
    """What is wrong, without the library's source files, functions and error codes."""
    found = re.search(r"Error Code \d+: [\w ]+\((.*)\)\s*$", words, re.DOTALL)
    text = found.group(1) if found else words
    text = re.sub(r"\s*In \w+ at /\S+", "", text)
    for said, meant in _MEANT:
        text = re.sub(said, meant, text)
    return " ".join(text.split()).strip(" .")


def why(words: str, nodes: Sequence[tuple[str, str]]) -> str:
    """What is wrong, with name and operator of the nodes that are meant."""
    named = ", ".join(f"'{name}' ({op})" for name, op in nodes)
    return f"at node {named}: {plain(words)}" if named else plain(words)


def remedy(words: str) -> str:
    """What to do, as a sentence."""
    found = next((cure for pattern, cure in REMEDIES if re.search(pattern, words)), KEEP)
    return f"{found[0].upper()}{found[1:]}."
