"""Which backups stay, and the careful removal of the rest."""
