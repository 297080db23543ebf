"""The stages, a file each; `compile.py` has them in order."""
