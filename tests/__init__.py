"""Tests against real servers: PostgreSQL, S3, gpg. None of them is ever imitated."""
