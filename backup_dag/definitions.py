"""Dagster's front door.

Loading fails with the error that a terminal would show, where a setting is missing or malformed.
"""

from backup_dag.core.private import shut_others_out
from backup_dag.core.settings import load
from backup_dag.defs.location import code_location

shut_others_out()
defs = code_location(load())
