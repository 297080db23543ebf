"""Element types and shapes: what is not FP32 is widened and typed again at the ends, what files say is not believed."""
