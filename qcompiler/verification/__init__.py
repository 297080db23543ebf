"""Float and quantized side by side, and the check behind every float pass."""
