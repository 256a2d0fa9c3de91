"""PostgreSQL backups that come back. Start reading at `core/__init__.py`, the map."""

__version__ = "0.1.0"
