"""The float graph in its plainest form: names, constants, one opset, everything folded that can be."""
