"""qcompiler beside other quantizers, on the same samples: run `python -m benchmarks --help`."""

import os

os.environ["QCOMPILER_CACHE"] = "off"  # what is timed must be done, here and in what is started from here
