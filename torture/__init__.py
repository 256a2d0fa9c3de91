"""Faults of every kind, at every moment; and after each one the same questions."""
