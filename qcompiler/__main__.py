"""`python -m qcompiler`: the command line."""

import sys

from qcompiler.cli.main import main

sys.exit(main())
