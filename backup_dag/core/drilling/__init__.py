"""Proof by restoring: a backup into a server of its own, compared, timed, and gone again."""
