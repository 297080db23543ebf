"""Functions of the user's own code, named as `file.py:function` or `package.module:function`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

from qcompiler.errors import QCompilerError
from qcompiler.support.suggest import did_you_mean

_STAMP = "__qcompiler_file__"  # when the file of a module was written last


@contextlib.contextmanager
def _first(folder: Path) -> Iterator[None]:
    """The folder in front of all others that modules are looked for in."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


@dataclass(frozen=True)
class UserCode:
    """How one kind of function is loaded and what is said where it cannot be.

    Attributes:
        kind: one word, part of the name under which a file becomes a module.
        forms: what else may be written in its place, for a module that is not there.
        purpose: what the function does, as in "which {purpose}"; may be empty.
        missing: the error where there is no such file, module or function.
        broken: the error where the file fails when it is run; a module that fails counts as missing.
        opening: what messages begin with; `{text}` stands for what the user wrote.
        once: a file that is unchanged is run once in a process, because that may be slow; else at every call.
    """

    kind: str
    forms: str
    missing: type[QCompilerError]
    broken: type[QCompilerError]
    purpose: str = ""
    opening: str = ""
    once: bool = False

    def load(self, text: str) -> tuple[Callable[..., Any], ModuleType]:
        """The function and the module that it stands in; modules of the current folder are found.

        Raises:
            QCompilerError: `missing` or `broken`; their cause is what the user's code raised.
        """
        where, _, name = text.rpartition(":")
        module = self._file(Path(where), text) if where.endswith(".py") else self._module(where, text)
        found = getattr(module, name, None)
        if callable(found):
            return found, module
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        which = f", which {self.purpose}" if self.purpose else ""
        hint = did_you_mean(name, known)
        raise self.missing(f"{self._opening(text)}'{where}' has no function '{name}'{which}; {hint}")

    def _opening(self, text: str) -> str:
        return self.opening.format(text=text)

    def _file(self, path: Path, text: str) -> ModuleType:
        opening = self._opening(text)
        if not path.is_file():
            raise self.missing(f"{opening}there is no file '{path}' (from '{text}'); check the spelling of the path.")
        digest = blake2b(str(path.resolve()).encode(), digest_size=6).hexdigest()
        unique, stamp = f"qcompiler_{self.kind}_{path.stem}_{digest}", path.stat().st_mtime_ns
        known = sys.modules.get(unique)
        if self.once and known is not None and getattr(known, _STAMP, None) == stamp:
            return known
        spec = importlib.util.spec_from_file_location(unique, path)
        if spec is None or spec.loader is None:
            raise self.missing(f"{opening}'{path}' cannot be loaded as a Python file.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module  # dataclasses and the like look their module up while it is being run
        try:
            with _first(path.resolve().parent):  # `python file.py` finds its neighbours, too
                spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[unique]
            raise self.broken(f"{opening}'{path}' fails when it is loaded: {type(error).__name__}: {error}.") from error
        setattr(module, _STAMP, stamp)
        return module

    def _module(self, name: str, text: str) -> ModuleType:
        here = str(Path.cwd())  # a console script does not have the current folder on its path, `python -m` has
        added = here not in sys.path and "" not in sys.path
        if added:
            sys.path.insert(0, here)
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit) as error:
            missing = isinstance(error, ImportError) or not name
            advice = f"; give {self.forms}" if missing else ""
            raise self.missing(
                f"{self._opening(text)}'{text}' cannot be imported: {type(error).__name__}: {error}{advice}."
            ) from error
        finally:
            if added and here in sys.path:
                sys.path.remove(here)
