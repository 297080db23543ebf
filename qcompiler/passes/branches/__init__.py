"""Branches of an If that compute nearly the same: what they share is computed around them."""
