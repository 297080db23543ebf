"""How much a pass writes out in one model: what comes first gets it, and what is left over stays as it is."""

from __future__ import annotations

_MOST_NODES = 4096
_MOST_BYTES = 32 << 20  # of weights that are stored once more for each round or step


class Budget:
    """What is left to one run of a pass; another run has another one.

    Args:
        nodes: that may be written out, over the whole model.
        size: bytes of weights that may be stored with them.
    """

    def __init__(self, nodes: int = _MOST_NODES, size: int = _MOST_BYTES) -> None:
        self._nodes, self._size = (nodes, nodes), (size, size)  # what is left, of how much

    def take(self, nodes: int, size: int) -> str:
        """Takes so many nodes and bytes of weights; where they are not left, says so and takes nothing."""
        for wanted, what, (left, most) in ((nodes, "nodes", self._nodes), (size, "bytes of weights", self._size)):
            if wanted > left:
                return f"it would become {wanted} {what}, and {left} of the {most} that one model gets are left"
        self._nodes = (self._nodes[0] - nodes, self._nodes[1])
        self._size = (self._size[0] - size, self._size[1])
        return ""
