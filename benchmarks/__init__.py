"""qcompiler beside other quantizers, on the same samples: run `python -m benchmarks --help`."""
