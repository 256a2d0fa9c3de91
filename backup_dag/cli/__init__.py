"""backup-dag: the same verbs from a terminal, for when all else is gone. One room a verb; no Dagster."""
