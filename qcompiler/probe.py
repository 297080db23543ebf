"""What an error in the results of a few layers does to the outputs of the model, without quantizing anything there.

The layers are cut out of the graph and their results become inputs, so one session answers for every way of computing
them. It is for layers whose own error says little: where single tokens spike, everybody attends to them, the next norm
hides most of what is wrong with them, and what is left decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler import graph as graphs
from qcompiler import model as models
from qcompiler.session import Feeds, Session

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Probe:
    """Runs what is behind some layers that read one activation.

    Args:
        model: the float model, normalised.
        tensor: the activation.
        readers: names of the layers.
        feeds: samples to judge by.

    Attributes:
        inputs: the activation on each feed.
    """

    def __init__(self, model: models.Model, tensor: str, readers: Sequence[str], feeds: Sequence[Feeds]) -> None:
        nodes = {node.name: node for node in model.graph.nodes}
        self._results = [nodes[reader].outputs[0].name for reader in readers]
        outputs = [output.name for output in model.graph.outputs if graphs.is_float(output)]
        fed = tensor in {one.name for one in model.graph.inputs}
        whole = Session(model, outputs=[*outputs, *([] if fed else [tensor])], quick=True)
        self._feeds = list(feeds)
        self.inputs: list[NDArray[np.float32]] = []
        self._expected: list[dict[str, NDArray[Any]]] = []
        for feed in self._feeds:
            values = {**feed, **whole.run(feed)}
            self.inputs.append(np.asarray(values[tensor], np.float32))
            self._expected.append({name: values[name] for name in outputs})
        self._session = Session(_cut(model, readers), outputs=outputs, quick=True)

    def noise(self, results: Sequence[Sequence[NDArray[np.float32]]]) -> float:
        """Noise-to-signal power at the float outputs, each output counting the same.

        Args:
            results: for each feed, what each of the layers is to give, in their order.
        """
        noise: dict[str, float] = {}
        signal: dict[str, float] = {}
        for feed, expected, given in zip(self._feeds, self._expected, results, strict=True):
            found = self._session.run({**feed, **dict(zip(self._results, given, strict=True))})
            for name, value in expected.items():
                reference = np.asarray(value, np.float64)
                signal[name] = signal.get(name, 0.0) + float(np.sum(reference**2))
                noise[name] = noise.get(name, 0.0) + float(np.sum((found[name] - reference) ** 2))
        ratios = [noise[name] / signal[name] for name in noise if signal[name] > 0]
        return sum(ratios) / len(ratios) if ratios else 0.0


def _cut(model: models.Model, readers: Sequence[str]) -> models.Model:
    """A copy in which the results of these nodes are inputs."""
    cut = models.copy(model)
    doomed = [node for node in cut.graph.nodes if node.name in readers]
    results = [node.outputs[0] for node in doomed]
    graphs.remove_nodes(cut.graph, doomed)
    cut.graph.inputs.extend(results)
    return cut
