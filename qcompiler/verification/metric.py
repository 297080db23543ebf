"""The user's metric: loaded, checked, run on float and quantized alike."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.data.spread import Spread, Spreads
from qcompiler.errors import QCompilerError, UsageError
from qcompiler.ir import model as models
from qcompiler.runtime.stream import OpenModel
from qcompiler.support.user_code import UserCode
from qcompiler.verification.replay import fitting

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feeds = Mapping[str, NDArray[Any]]
    Run = Callable[[Feeds], Mapping[str, NDArray[Any]]]
    Metric = Callable[[Callable[[Feeds], "Outputs"]], float]

QUICK_SAMPLES = 32  # for so few runs, preparing two sessions thoroughly costs more time and memory than it saves
_CODE = UserCode(
    "metric",
    forms="'package.module:function' or 'file.py:function'",
    missing=UsageError,
    broken=UsageError,
    opening="metric {text} cannot be loaded: ",
    once=True,  # labelled data is often read there
)


@dataclass(frozen=True, slots=True)
class Score:
    """The user's metric on both models.

    Attributes:
        name: the text that named the function, or its own description in `METRIC` of its module.
        float_score: score of the float model.
        quantized_score: score of the quantized model.
        higher_is_better: as the metric itself says, else `HIGHER_IS_BETTER` of its module, else True.
        details: what a built-in metric says of itself: protocol, tokens and windows; None for others.
        fed: the values of each input that the metric gave to the quantized model, by input.
        halves: what of the loss is held out (see `metrics.halves`); None where nothing was chosen by this metric.
    """

    name: str
    float_score: float
    quantized_score: float
    higher_is_better: bool
    details: Mapping[str, Any] | None = None
    fed: Mapping[str, Spread] = field(default_factory=dict)
    halves: Mapping[str, Any] | None = None

    @property
    def drop(self) -> float:
        """What was lost, relative to the float score (0.01 is 1 %); negative where quantized is better.

        A float score of 0 makes it absolute.
        """
        lost = (
            self.float_score - self.quantized_score
            if self.higher_is_better
            else self.quantized_score - self.float_score
        )
        return lost / abs(self.float_score) if self.float_score else lost

    def to_json(self) -> dict[str, Any]:
        """For the manifest, which has `fed` under `inputs`, and `halves` where there are any."""
        left_out = {"fed", *(() if self.halves is not None else ("halves",))}
        told = {key.name: getattr(self, key.name) for key in fields(self) if key.name not in left_out}
        return {**told, "drop": self.drop}


def loaded(model: str | Path | models.Model) -> models.Model:
    """The model, read where a file is named."""
    return model if isinstance(model, models.Model) else models.load(model)


def runner_of(
    model: models.Model | Run, optimize: bool, *, quick: bool, outputs: Sequence[str] | None = None, draw: int = 0
) -> tuple[Run, Sequence[str] | None]:
    """How a model is run, and the names of what it returns where they are known: `outputs`, or its own.

    Args:
        model: or a function that runs it, which is taken as it is.
        optimize: let ONNX Runtime optimise the graph.
        quick: made for a handful of runs.
        outputs: tensors to return; None for the model's own.
        draw: which numbers its random operators give.
    """
    if not isinstance(model, models.Model):
        return model, None
    session = OpenModel(model, optimize=optimize, quick=quick, outputs=outputs, draw=draw)
    return (lambda feed: session.run(fitting(feed, session))), session.outputs


@dataclass(frozen=True)
class MetricFunction:
    """A metric that was loaded.

    Attributes:
        function: the user's, or a built-in one.
        label: what messages call it.
        name: what reports call it.
        higher_is_better: its direction.
        details: what a built-in metric says of itself; None for others.
    """

    function: Metric
    label: str
    name: str
    higher_is_better: bool
    details: Mapping[str, Any] | None

    @classmethod
    def of(cls, metric: str | Metric) -> MetricFunction:
        """Loads the metric.

        A metric that is an object says itself what it is called (`label`) and which direction is better
        (`higher_is_better`); for a function, its module does.

        Raises:
            UsageError: there is none, or its file fails when it is loaded.
        """
        function, module = (
            _CODE.load(metric) if isinstance(metric, str) else (metric, sys.modules.get(metric.__module__))
        )
        label = (
            metric if isinstance(metric, str) else str(getattr(metric, "label", getattr(metric, "__name__", "metric")))
        )
        return cls(
            function,
            label,
            name=str(getattr(function, "label", getattr(module, "METRIC", label))),
            higher_is_better=bool(getattr(function, "higher_is_better", getattr(module, "HIGHER_IS_BETTER", True))),
            details=getattr(function, "details", None),
        )

    def score(self, run: Run, step: Callable[[], None] | None = None, spreads: Spreads | None = None) -> float:
        """The score of what `run` runs.

        Args:
            run: the model.
            step: called after each run, where the metric knows how many there will be.
            spreads: watches what is fed.

        Raises:
            UsageError: the metric fails, or returns no number.
        """
        return _score(self.function, run, self.label, step if hasattr(self.function, "runs") else None, spreads)

    def compared(
        self,
        first: float,
        second: float,
        fed: Mapping[str, Spread] | None = None,
        halves: Mapping[str, Any] | None = None,
    ) -> Score:
        """A float score and a quantized one."""
        return Score(self.name, first, second, self.higher_is_better, self.details, fed or {}, halves)


def scoring_of(metric: str | Metric) -> Callable[[Run, Run | None, Callable[[], None] | None, float | None], Score]:
    """Loads the metric at once, so that a typo does not cost a comparison first; see `MetricFunction.of`."""
    loaded_one = MetricFunction.of(metric)

    def both(
        run_float: Run, run_quantized: Run | None, advance: Callable[[], None] | None, known: float | None
    ) -> Score:
        first = loaded_one.score(run_float, advance) if known is None else known
        if run_quantized is None:
            return loaded_one.compared(first, first)
        spreads = Spreads()
        second = loaded_one.score(run_quantized, advance, spreads)
        return loaded_one.compared(first, second, spreads.found())

    return both


def score_of(metric: str | Metric, model: models.Model) -> float:
    """A metric of one float model alone."""
    run, _ = runner_of(model, True, quick=False)
    return scoring_of(metric)(run, None, None, None).float_score


def score_by(metric: str | Metric, run: Run) -> Score:
    """A metric of whatever `run` runs; both scores are its own."""
    return scoring_of(metric)(run, None, None, None)


class Outputs(list[Any]):
    """What a metric gets: a list of arrays, as ONNX Runtime's own `run` gives it, that also takes names."""

    def __init__(self, named: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(named.values())
        self._named = named

    def __getitem__(self, key: Any) -> Any:
        return self._named[key] if isinstance(key, str) else super().__getitem__(key)

    def keys(self) -> Iterable[str]:
        """The names, in the model's order."""
        return self._named.keys()


def _score(
    function: Metric,
    run: Run,
    label: str,
    step: Callable[[], None] | None = None,
    spreads: Spreads | None = None,
) -> float:
    def once(feeds: Feeds) -> Outputs:
        outputs = Outputs(run(feeds))
        if spreads is not None:
            spreads.watch(feeds)
        if step is not None:
            step()
        return outputs

    try:
        return float(function(once))
    except QCompilerError:
        raise
    except (Exception, SystemExit) as error:  # the user's code can raise anything
        raise UsageError(
            f"metric {label} failed with {type(error).__name__}: {error}. It is called with a function run(feeds) -> "
            "outputs, a list of arrays that also takes names, and returns one number; --debug shows where it failed."
        ) from error


def check_metric(text: str) -> None:
    """Finds out before a long run whether there is such a metric.

    Raises:
        UsageError: there is none, or its file fails when it is loaded.
    """
    _CODE.load(text)
