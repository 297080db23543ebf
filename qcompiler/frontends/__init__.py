"""What is no ONNX file becomes one: Hugging Face folders, GGUF, torch modules."""
