"""The life of a model: `compile.py` is one page of steps, `stages/` has a file for each."""
