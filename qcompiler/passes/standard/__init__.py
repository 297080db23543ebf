"""Operators of the newest opsets written out in older ones, where a target does not take them or not as well."""
