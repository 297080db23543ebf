"""The tree of errors in the docstring is the one of the classes, with their exit codes."""

from __future__ import annotations

import inspect
import re

import pytest

from qcompiler import errors

KINDS = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
# (depth of the branch, name, exit code), in the order of the docstring
LINES = [
    (len(branch) // 4, name, int(code))
    for branch, name, code in re.findall(r"^ {4}([│├└─ ]*)(\w+) +(\d)  ", errors.__doc__ or "", re.MULTILINE)
]


def test_the_docstring_lists_every_error_with_its_exit_code() -> None:
    assert {name: code for _, name, code in LINES} == {
        name: getattr(kind, "exit_code", None) for name, kind in KINDS.items()
    }


def test_the_docstring_says_which_error_is_a_kind_of_which() -> None:
    above: list[str] = []
    for depth, name, _ in LINES:
        del above[depth:]
        assert KINDS[name].__base__ is (KINDS[above[-1]] if above else Exception), name
        above.append(name)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_message_stays_as_it_is_and_one_except_catches_all(name: str) -> None:
    with pytest.raises(errors.QCompilerError) as caught:
        raise KINDS[name]("tensor 'выход'")
    assert str(caught.value) == "tensor 'выход'"


def test_only_defects_of_ours_end_with_1() -> None:
    ours = {name for name, kind in KINDS.items() if issubclass(kind, errors.InternalError)}
    assert {name for _, name, code in LINES if code == 1} == {"QCompilerError", *ours}
