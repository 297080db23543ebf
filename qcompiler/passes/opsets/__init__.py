"""Other opsets: what an operator of an old one is called in a newer one, and in which one ONNX Runtime runs a model."""
