"""Any source of samples as a stream of checked feeds."""
