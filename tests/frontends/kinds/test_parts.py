"""What is exported names each file once, in front of those that it feeds."""

from __future__ import annotations

import pytest

from tests.kit.architectures import Exports


@pytest.mark.parametrize("name", ["t5"])
def test_links_lead_from_outputs_to_inputs_that_are_there(exports: Exports, name: str) -> None:
    import json

    made = exports(name)[1]
    found = json.loads(next(path for path in made.files if path.name.endswith(".set.json")).read_text())
    parts = {one["name"]: one for one in found["parts"]}
    order = list(parts)
    assert found["feeds"]
    for link in found["feeds"]:
        assert link["output"] in parts[link["from"]]["outputs"]
        assert link["input"] in parts[link["to"]]["inputs"]
        assert order.index(link["from"]) <= order.index(link["to"])
