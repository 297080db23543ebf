"""The order of axes: operators that only move data go where they cancel, and what they parted stands together."""
