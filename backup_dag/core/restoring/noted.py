"""What a backup's text says of its schema and its large objects, noted while it passes.

So that whoever compares a restored database with it need not read the artifact a second time.
"""

from dataclasses import dataclass, field

from backup_dag.core.restoring.objects import LargeObjects
from backup_dag.core.restoring.schemas import Schema
from backup_dag.core.stages.fingerprint import Fingerprint
from backup_dag.core.stream import Writer


@dataclass
class Noted:
    """Complete once the text has passed to its end."""

    schema: Schema = field(default_factory=Schema)
    objects: LargeObjects = field(default_factory=LargeObjects)

    def fingerprint(self, whole: Writer | None = None) -> Fingerprint:
        """To be written to beside whoever takes the text; or before who takes all of it within a transaction
        (`whole`)."""
        return Fingerprint(schema=self.schema, objects=self.objects, whole=whole)
