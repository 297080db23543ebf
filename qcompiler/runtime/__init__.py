"""ONNX Runtime: `stream.py` is the one door to it."""

import os

# From 1.29 on its builds report to their maker from the moment they are imported, and keep a file among the temporary
# ones. Models and data are the user's, so that is off unless the environment says otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
