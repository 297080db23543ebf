"""`qcompiler sensitivity`: which layer hurts, in which format, whether weights or activations are to blame."""
