"""Measured comparisons, one command: `make bench`. They decide no test."""
