"""Products of any spelling as MatMul or Gemm with the constant on the right, which is what can be quantized."""
