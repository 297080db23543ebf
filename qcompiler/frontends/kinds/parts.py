"""What a model becomes: one graph, or several that feed each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qcompiler.frontends.check import Check
from qcompiler.frontends.torch_onnx import Job


@dataclass(frozen=True)
class ModelPart:
    """One graph: how it is traced, and how it is checked.

    Attributes:
        name: what it is among the others, such as "encoder"; empty where it is the only one.
        job: how it is traced.
        check: how it is held against torch.
        torch_first: the check has all that it wants of torch before it runs the graph.
    """

    name: str
    job: Job
    check: Check
    torch_first: bool = False


@dataclass(frozen=True)
class Link:
    """What one part computes and another one reads, each by the name of the part, a dot, and that of the tensor.

    Attributes:
        source: name of the part that computes it.
        output: name of its output.
        target: name of the part that reads it; the same where the next step reads it.
        input: name of its input.
    """

    source: str
    output: str
    target: str
    input: str


@dataclass(frozen=True)
class ModelKind:
    """What is exported.

    Attributes:
        name: "decoder", "decoder with cache", "encoder", "encoder-decoder", "module", and so on.
        parts: its graphs, each in front of those that it feeds.
        links: how they feed each other.
        constants: numbers that are used outside of the graphs, such as the scale of a dual encoder's logits.
        notes: what the user should know.
        one_by_one: the same with one row a call, where the model's code fixes the number of rows while it is traced;
            None where that cannot be.
    """

    name: str
    parts: Sequence[ModelPart]
    links: Sequence[Link] = ()
    constants: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    one_by_one: Callable[[], ModelKind] | None = None
