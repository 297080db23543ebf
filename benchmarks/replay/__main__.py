"""The command line: `python -m benchmarks.replay record | compare | against`.

    python -m benchmarks.replay against main~1             # this tree beside another commit
    python -m benchmarks.replay record OUT [--tree DIR]    # one of them
    python -m benchmarks.replay compare OUT_A OUT_B        # two records

The cases run in a process of their own: a copy of this folder, with the package of the tree on PYTHONPATH. So a commit
needs no replay of its own, and one script serves all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.replay import compare

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LINES = 3  # differences of a file that are shown unless all are asked for
USUAL = "^(?!torch)"  # exporting takes longer than all the rest


def main(arguments: Sequence[str] | None = None) -> int:
    """0: recorded, or equal; 1: something differs, or a process failed; 2: usage."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__.splitlines()[0])
    parser.set_defaults(all=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    recording = commands.add_parser("record", help="run the cases with the package of a tree")
    recording.add_argument("out", type=Path, metavar="OUT", help="a folder that is new or empty")
    recording.add_argument(
        "--tree", type=Path, default=ROOT, metavar="DIR", help="where the package is (default: here)"
    )
    comparing = commands.add_parser("compare", help="compare two records")
    comparing.add_argument("first", type=Path, metavar="OUT_A")
    comparing.add_argument("second", type=Path, metavar="OUT_B")
    both = commands.add_parser("against", help="record a commit and this tree, and compare")
    both.add_argument("commit", metavar="COMMIT")
    for one in (recording, comparing, both):
        one.add_argument(
            "--only",
            default=USUAL,
            metavar="REGEX",
            help="cases whose name matches (default: all but those that export from torch)",
        )
    for one in (comparing, both):
        one.add_argument("--all", action="store_true", help=f"show all differences, not {LINES} a file")
    options = parser.parse_args(arguments)
    try:
        if options.command == "record":
            return record(options.out, options.tree, options.only)
        if options.command == "compare":
            return table(options.first, options.second, options.only, options.all)
        return against(options.commit, options.only, options.all)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def record(out: Path, tree: Path, only: str = USUAL) -> int:
    """Runs the cases with the package in `tree`; 0, or the exit code of the process that failed.

    Raises:
        FileExistsError: there is something in `out`, which could be taken for a result.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: give a new folder, so that no old result is taken for a new one")
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        copied = Path(folder) / "benchmarks" / HERE.name
        shutil.copytree(HERE, copied, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(HERE.parent / "__init__.py", copied.parent)
        line = [sys.executable, "-m", "benchmarks.replay.child", str(out.resolve()), "--tree", str(tree.resolve())]
        environment = {**os.environ, "PYTHONPATH": str(tree.resolve()), "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run([*line, "--only", only], cwd=folder, env=environment, check=False).returncode


def table(first: Path, second: Path, only: str = USUAL, everything: bool = False) -> int:
    """Prints a line for each case and what differs below it; 0: nothing, 1: something, 2: nothing to compare.

    Raises:
        OSError: a folder cannot be read.
    """
    cases = sorted({*compare.names(first, only), *compare.names(second, only)})
    if not cases:
        print(f"error: no case in {first} or {second} matches '{only}'", file=sys.stderr)
        return 2
    differing = 0
    for name in cases:
        found = compare.case(first / name, second / name)
        differing += bool(found)
        print(f"{'DIFFERS' if found else 'equal  '}  {name}")
        for file, lines in found.items():
            shown = lines if everything else lines[:LINES]
            more = f"         and {len(lines) - len(shown)} more of {file}\n" * (len(shown) < len(lines))
            print("".join(f"         {line}\n" for line in shown) + more, end="")
    print(f"{len(cases) - differing} of {len(cases)} cases are equal")
    return 1 if differing else 0


def against(commit: str, only: str = USUAL, everything: bool = False) -> int:
    """Records a commit and this tree into a temporary folder and compares them, as `table` does.

    Raises:
        subprocess.CalledProcessError: git does not know the commit.
    """
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        tree, old, new = (Path(folder) / name for name in ("tree", "old", "new"))
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", "--quiet", tree, commit], check=True)
        try:
            for out, place in ((old, tree), (new, ROOT)):
                if code := record(out, place, only):
                    return code
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", tree], check=True)
        return table(old, new, only, everything)


if __name__ == "__main__":
    sys.exit(main())
