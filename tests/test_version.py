"""The version is one that installers understand, and the module says it as the command does."""

from __future__ import annotations

import subprocess
import sys

from packaging.version import Version

import qcompiler
from qcompiler._version import __version__


def test_it_is_written_as_installers_compare_it() -> None:
    assert str(Version(__version__)) == __version__ == qcompiler.__version__


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "qcompiler", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"qcompiler {__version__}\n", "")
