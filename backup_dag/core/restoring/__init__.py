"""A backup back into a database: planned, proven, and so that it cannot hurt."""
