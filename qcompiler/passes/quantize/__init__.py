"""Passes that put quantizers into the graph and store weights in few bits."""
