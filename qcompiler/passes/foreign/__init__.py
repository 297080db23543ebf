"""Passes that write operators of other domains in those of ONNX."""
