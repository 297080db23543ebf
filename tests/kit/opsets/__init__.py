"""Nodes of old opsets, for the differential test."""
