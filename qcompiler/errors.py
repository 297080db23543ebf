"""Every error a user can meet, and the exit code each one ends the command line with.

    QCompilerError            1   base; raised as itself only for a defect of ours
    ├── InternalError         1   an invariant of ours broke: please report it
    │   ├── PassError         1   a pass failed; names the pass and the ones before it
    │   └── EquivalenceError  1   a float pass changed what the model computes
    ├── UsageError            2   wrong options, an unknown recipe key, an unwritable output
    │   └── PipelineError     2   passes in an order that cannot work
    ├── ModelError            3   the model cannot be read, is malformed or not finite
    ├── DataError             4   the calibration or evaluation data does not fit the model
    ├── AccuracyError         5   a gate was not met: of accuracy, or of a comparison of two compilations
    └── EngineError           6   the engine library refuses, is missing or cannot serve the target
        └── BuildError        6   its builder gave up on what its parser took

A message is one paragraph: what happened, where (file, node, tensor), and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class QCompilerError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 1


class InternalError(QCompilerError):
    """Something that cannot happen did; the message asks for a report."""


class PassError(InternalError):
    """A pass raised something else than a `QCompilerError`; the message names it and its predecessors."""


class EquivalenceError(InternalError):
    """A float pass moved an output by more than its tolerance; the message names the output and the pass."""


class UsageError(QCompilerError):
    """The request itself is wrong: options, recipe, output path."""

    exit_code = 2


class PipelineError(UsageError):
    """A pass requires a fact that no earlier pass provides, or an unknown pass or option was named."""


class ModelError(QCompilerError):
    """The model file or graph cannot be used; the message names the file, node or initializer.

    Attributes:
        fed: what a graph was run on when this happened, by input; empty where it could not even be opened, None where
            nothing was run.
        said: the words of ONNX Runtime; empty where it said nothing.
    """

    exit_code = 3
    fed: Mapping[str, Any] | None = None
    said: str = ""


class DataError(QCompilerError):
    """The data does not fit the model; the message names the sample and the input.

    Attributes:
        fed: as of `ModelError`.
        said: as of `ModelError`.
    """

    exit_code = 4
    fed: Mapping[str, Any] | None = None
    said: str = ""


class AccuracyError(QCompilerError):
    """A threshold asked for by the user was missed; the message has both figures.

    Attributes:
        manifest: what a compilation recorded until then, as plain data; None where it was none.
    """

    exit_code = 5
    manifest: Mapping[str, Any] | None = None


class EngineError(QCompilerError):
    """The target cannot take the model or its library is not there; the message names the node.

    Attributes:
        said: what the library itself said, for those who debug; empty where it said nothing.
    """

    exit_code = 6
    said: str = ""


class BuildError(EngineError):
    """The library's builder gave up on a model that its parser took.

    Attributes:
        why: what is wrong, with the nodes that the library names.
        remedy: what to do.
    """

    why: str = ""
    remedy: str = ""

    @classmethod
    def of(cls, head: str, why: str, remedy: str, said: str) -> BuildError:
        """`head` is what failed, such as "TensorRT-RTX 1.7 could not build 'x.onnx'"."""
        error = cls(f"{head}: {why}. {remedy}")
        error.why, error.remedy, error.said = why, remedy, said
        return error
