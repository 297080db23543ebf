"""Tests; the folders mirror qcompiler's."""
