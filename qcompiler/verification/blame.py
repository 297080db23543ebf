"""Whose fault it is when a graph does not run: a feed that the user's model takes cannot be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qcompiler.errors import DataError, InternalError, ModelError
from qcompiler.ir.model import Model
from qcompiler.runtime.stream import OpenModel


@contextmanager
def blaming(made: str, reference: Model | None) -> Iterator[None]:
    """Around what runs graphs of the compiler's own making.

    Args:
        made: who makes them, such as "stage 'decide'".
        reference: the model as it was loaded; None where there is none yet, and nobody but the user to blame.

    Raises:
        InternalError: one of them does not run, or cannot be opened, and the model itself can.
    """
    try:
        yield
    except (DataError, ModelError) as error:
        if error.fed is None or reference is None or not _runs(reference, error):
            raise
        done = "runs on the same feed" if error.fed else "can be opened"
        raise InternalError(
            f"ONNX Runtime fails on a graph that {made} made of the model, while the model itself {done}: "
            f"{error.said or error}. Neither the model nor the data is to blame: this is a defect of "
            "qcompiler; please report it with the model."
        ) from error


def _runs(reference: Model, error: DataError | ModelError) -> bool:
    """Whether the model as it was loaded does what failed."""
    try:
        session = OpenModel(reference, quick=True)
        if error.fed:
            session.run({name: value for name, value in error.fed.items() if name in session.inputs})
    except (DataError, ModelError):
        return False
    return True
