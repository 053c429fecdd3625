"""Losses that enlarge linear regions."""
