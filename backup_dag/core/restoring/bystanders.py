"""What hangs on a database: sessions, slots, prepared transactions; and what our role may do there."""

from typing import Any

from backup_dag.core.postgres import connected
from backup_dag.core.restoring.target import Target
from backup_dag.core.sql import literal


def sessions(target: Target) -> dict[str, int]:
    """How many are connected to the target now, by application and user."""
    rows = target.session.rows(
        f"""
        SELECT format('%s (%s)', coalesce(nullif(application_name, ''), 'unnamed'), usename) AS who,
               count(*) AS number
        FROM pg_stat_activity
        WHERE datname = {literal(target.name)} AND backend_type IN ('client backend', 'walsender')
          AND pid <> pg_backend_pid()
        GROUP BY 1 ORDER BY 2 DESC, 1
        """
    )
    return {row["who"]: row["number"] for row in rows}


def holding_on(target: Target) -> dict[str, int]:
    """What ending sessions does not end: prepared transactions, and logical replication slots."""
    name = literal(target.name)
    return target.session.row(
        f"""
        SELECT (SELECT count(*) FROM pg_prepared_xacts WHERE database = {name}) AS prepared,
               (SELECT count(*) FROM pg_replication_slots WHERE database = {name}) AS slots
        """
    )


def rights(target: Target, owner: str | None) -> dict[str, Any]:
    """What our role may do on that server: superuser, createdb, createrole, signal, owns."""
    owns = f"pg_has_role({literal(owner)}, 'USAGE')" if owner is not None else "true"
    return target.session.row(
        f"""
        SELECT rolname AS name, rolsuper AS superuser, rolsuper OR rolcreatedb AS createdb,
               rolsuper OR rolcreaterole AS createrole, rolsuper OR {owns} AS owns,
               rolsuper OR pg_has_role('pg_signal_backend', 'USAGE') AS signal
        FROM pg_roles WHERE rolname = current_user
        """
    )


def in_the_way_in_place(target: Target) -> dict[str, Any]:
    """What a database holds that one transaction may not be able to drop: subscriptions, owners whose
    objects our role may not drop, and how many objects there are for how many locks."""
    owned = " UNION ".join(
        f"SELECT {column} AS owner FROM {catalog} WHERE oid >= 16384"
        for catalog, column in (
            ("pg_class", "relowner"),
            ("pg_proc", "proowner"),
            ("pg_type", "typowner"),
            ("pg_namespace", "nspowner"),
            ("pg_extension", "extowner"),
            ("pg_event_trigger", "evtowner"),
            ("pg_largeobject_metadata", "lomowner"),
        )
    )
    with connected(target.address) as session:
        return session.row(
            f"""
            SELECT (SELECT count(*) FROM pg_subscription
                    WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()))
                   AS subscriptions,
                   (SELECT array_agg(rolname::text ORDER BY rolname)
                    FROM (SELECT DISTINCT owner FROM ({owned}) o WHERE NOT pg_has_role(owner, 'USAGE')) w
                    JOIN pg_roles r ON r.oid = owner) AS owners,
                   (SELECT count(*) FROM pg_class WHERE oid >= 16384)
                   + (SELECT count(*) FROM pg_largeobject_metadata) AS objects,
                   (SELECT current_setting('max_locks_per_transaction')::int
                           * (current_setting('max_connections')::int
                              + current_setting('max_prepared_transactions')::int)) AS locks
            """
        )
