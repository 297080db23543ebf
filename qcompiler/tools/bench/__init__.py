"""`qcompiler bench`: models timed in turns, each in a process of its own."""
