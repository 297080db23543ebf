"""How well the estimates of `qcompiler sensitivity` rank layers, and what they cost."""
