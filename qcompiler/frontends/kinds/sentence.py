"""sentence-transformers folders: one graph from tokens to the embedding of the sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qcompiler.frontends.examples import inputs_of
from qcompiler.frontends.kinds.encoder import check, job_of
from qcompiler.frontends.kinds.parts import ModelKind, ModelPart
from qcompiler.frontends.pipeline import pipeline
from qcompiler.frontends.sources import LoadedModule

EMBEDDING = "sentence_embedding"


def kind_of(loaded: LoadedModule) -> ModelKind:
    """One graph: from tokens to the embedding of the sentence.

    Raises:
        ModelError: a module of the pipeline cannot be made, or the pipeline does not run.
    """
    inputs, whole = inputs_of(loaded), pipeline(loaded.module, loaded.pipeline)

    def outputs(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        return {EMBEDDING: whole(**tensors)}

    job = job_of(loaded, inputs, outputs, loaded.name, owner=whole)
    return ModelKind("sentence encoder", (ModelPart("", job, check(loaded, inputs, outputs)),))
