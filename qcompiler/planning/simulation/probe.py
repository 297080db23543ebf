"""What an error in the results of a few layers does to the outputs of the model, without quantizing anything there.

Every layer stands in a branch beside an input that can take its place, so one session answers for any layers and any
way of computing them. A layer's own error says little about that: where single tokens spike, everybody attends to them,
the next norm hides most of what is wrong with them, and what is left decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.judge.noise import Expected, Tally, judged, shares_of
from qcompiler.judge.views import Views, tensors_of, views_of
from qcompiler.runtime import switches
from qcompiler.runtime.stream import OpenModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Results = Sequence[Sequence[NDArray[np.float32]]]


GIVEN = "qcompiler/given/"  # before the names of the inputs that are added


class Probe:
    """Runs a model in which the results of some layers can be given.

    Args:
        model: the float model, normalised.
        readers: names of the layers, by the activation that they read.
        feeds: samples to judge by.
        folds: of each feed, the part of the data that its sample belongs to (`outliers.fold_of`).
        views: what is judged; None for those of the graph, joined ones whole.

    Attributes:
        inputs: by activation, its values on each feed.
        folds: as given.
    """

    def __init__(
        self,
        model: models.Model,
        readers: Mapping[str, Sequence[str]],
        feeds: Sequence[Feeds],
        folds: Sequence[int] = (),
        views: Views | None = None,
    ) -> None:
        self.folds = list(folds) or [-1] * len(feeds)
        self._readers, self._feeds = readers, list(feeds)
        views = judged(views_of(model.graph) if views is None else views)
        tensors = tensors_of(views)
        self._nodes = [node for names in readers.values() for node in names]
        self._session = OpenModel(_open(model, self._nodes), outputs=tensors, quick=True)
        whole = OpenModel(model, outputs=[*dict.fromkeys((*tensors, *readers))], quick=True)
        self.inputs: dict[str, list[NDArray[np.float32]]] = {name: [] for name in readers}
        self._expected: list[Expected] = []
        for feed in self._feeds:
            values = whole.run(feed)
            for name, seen in self.inputs.items():
                seen.append(np.asarray(values[name], np.float32))
            self._expected.append(Expected.of(views, values, feed))
        self._shares = shares_of(self._expected)

    def noise(self, results: Mapping[str, Results]) -> float:
        """Tally-to-signal power at the worst view.

        Args:
            results: by activation; for each feed, what each of its readers is to give, in their order.
        """
        total = Tally(self._shares)
        for index, (feed, expected) in enumerate(zip(self._feeds, self._expected, strict=True)):
            total.add(expected, self._session.run({**feed, **self._given(results, index)}))
        return total.worst()

    def _given(self, results: Mapping[str, Results], index: int) -> dict[str, NDArray[Any]]:
        """The inputs that say which layers' results are given, and what they are."""
        nothing = np.zeros(1, np.float32)
        extra: dict[str, NDArray[Any]] = {}
        for name in self._nodes:
            extra[f"{GIVEN}{name}/on"], extra[f"{GIVEN}{name}/y"] = np.array(False), nothing
        for activation, of_feeds in results.items():
            for name, value in zip(self._readers[activation], of_feeds[index], strict=True):
                extra[f"{GIVEN}{name}/on"], extra[f"{GIVEN}{name}/y"] = np.array(True), value
        return extra


def _open(model: models.Model, names: Sequence[str]) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
    """The model with an input beside each of these nodes that can take its place."""
    proto, arrays = models.to_proto(model.graph)
    chosen, nodes = set(names), []
    for node in proto.graph.node:
        if node.name not in chosen:
            nodes.append(node)
            continue
        own, plain = f"{GIVEN}{node.name}/", onnx.NodeProto()
        plain.CopyFrom(node)
        plain.output[0] = own + "computed"
        given = switches.node("Identity", [own + "y"], [own + "taken"])
        nodes.append(switches.choice(own + "on", own, node.output[0], [given], [plain]))
        proto.graph.input.append(switches.value_info(own + "on", onnx.TensorProto.BOOL, scalar=True))
        proto.graph.input.append(switches.value_info(own + "y", onnx.TensorProto.FLOAT))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto, arrays
