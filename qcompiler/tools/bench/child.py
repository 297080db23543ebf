"""The process that holds one model while it is timed against others: its memory is its own, and so are its threads.

Each line of JSON on standard input is a task; each is answered by one line on the original standard output. Arrays come
as files. The process ends when standard input closes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

from qcompiler.support.machine import peak_memory_mb
from qcompiler.support.npz import members
from qcompiler.tools.bench.loaded import LoadedModel, ended, load, write


def main() -> None:
    """Answers tasks until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    model: LoadedModel | None = None
    for line in sys.stdin:
        task: dict[str, Any] = json.loads(line)
        try:
            if task["task"] == "open":
                model, answer = _open(task)
            else:
                assert model is not None
                answer = _DO[task["task"]](model, task)
            answer["peak_memory_mb"] = _peak_memory_mb()
        except Exception as error:  # the parent raises it again
            answer = ended(error)
        _say(answers, answer)


def _say(stream: IO[str], answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


def _open(task: dict[str, Any]) -> tuple[LoadedModel, dict[str, Any]]:
    started = time.perf_counter()
    model = load(task["model"], task["engine"], task["provider"], task["threads"])
    seconds = time.perf_counter() - started
    named = {
        what: {name: [dtype and dtype.name, shape] for name, (dtype, shape) in values.items()}
        for what, values in (("inputs", model.inputs), ("outputs", model.outputs))
    }
    return model, {**named, "where": model.where, "version": model.version, "seconds": seconds}


def _infer(model: LoadedModel, task: dict[str, Any]) -> dict[str, Any]:
    return {"seconds": model.times(_arrays(task["feeds"]), task["count"])}


def _write(model: LoadedModel, task: dict[str, Any]) -> dict[str, Any]:
    done = write(model, _arrays(task["feeds"])["tokens"], task["prompt"], task["count"])
    chosen = done.chosen.tolist()
    return {"prefill": done.prefill_s, "decode": done.decode_s, "positions": done.positions, "chosen": chosen}


def _arrays(path: str) -> dict[str, Any]:
    return {name: member.whole() for name, member in members(Path(path)).items()}


def _peak_memory_mb() -> float | None:
    """Of this process alone: what `getrusage` says begins with the parent's."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return peak_memory_mb()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


_DO = {"infer": _infer, "write": _write}

if __name__ == "__main__":
    main()
