"""What is wrong with the backups, who is told of it, and numbers to look at."""
