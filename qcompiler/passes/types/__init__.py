"""Passes about element types and shapes."""
