"""Is what an open transaction has loaded what was backed up? Asked through the session that loaded it,
since nobody else can see it: rows, sequences and large objects.
"""

import time

from backup_dag.core.psql import Conversation
from backup_dag.core.reading import Source
from backup_dag.core.restoring.noted import Noted
from backup_dag.core.restoring.objects import faults_within
from backup_dag.core.restoring.proof import Proof, in_another_order
from backup_dag.core.restoring.rows import in_order, sequences, set_to_read, whatever_their_order
from backup_dag.core.stream import Meter, Observer


def prove_within(source: Source, psql: Conversation, noted: Noted, observer: Observer | None) -> Proof:
    """Compares what the transaction holds with the manifest, and with the large objects as they were read.

    Raises DatabaseError where the session has ended, and what reading the artifact again raises.
    """
    began, manifest = time.monotonic(), source.manifest
    content, encoding = manifest.content, manifest.source.encoding
    set_to_read(psql, encoding, manifest.dump.options)
    meter = Meter(observer, expected=sum(table.bytes for table in content.tables.values()))
    tables, again = in_order(content, [psql], meter)
    others = whatever_their_order(source, psql, again, encoding) if again else []
    notes = in_another_order(again, others)
    faults = sequences(content, psql)
    if content.large_objects.count:
        faults += faults_within(noted.objects, psql)
    return Proof(tuple(faults), (*tables, *others), tuple(notes), round(time.monotonic() - began, 3))
