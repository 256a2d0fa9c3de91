"""The Dagster layer. It translates between Dagster and `core`, and decides nothing."""
