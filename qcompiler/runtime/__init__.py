"""ONNX Runtime: `stream.py` is the one door to it."""
