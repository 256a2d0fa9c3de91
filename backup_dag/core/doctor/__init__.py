"""What a backup needs, looked at before it is needed."""
