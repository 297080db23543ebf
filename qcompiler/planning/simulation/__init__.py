"""What quantization would do to the outputs, without making the quantized graph."""
