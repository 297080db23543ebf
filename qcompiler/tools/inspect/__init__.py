"""`qcompiler inspect`: what is in a model, what can be quantized, where it spikes."""
