"""What a role may not read of the database it is connected to, and so could not back up."""

from backup_dag.core.postgres import Session


def hidden_by_row_security(session: Session) -> list[str]:
    """Tables of which row security hides rows from this role."""
    return [row["name"] for row in session.rows(_HIDDEN_BY_ROW_SECURITY)]


def not_readable(session: Session) -> list[str]:
    """Tables, sequences and large objects (of those 1,000 at the most) that this role may not read."""
    return [row["name"] for row in session.rows(_UNREADABLE) + session.rows(_UNREADABLE_OBJECTS)]


_OURS_TO_READ = """
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
      AND NOT EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
                        AND c.oid <> ALL (coalesce(e.extconfig, '{}')))
"""
_HIDDEN_BY_ROW_SECURITY = f"""
    SELECT c.oid::regclass::text AS name {_OURS_TO_READ}
      AND c.relrowsecurity AND row_security_active(c.oid)
    ORDER BY 1
"""
_UNREADABLE = f"""
    SELECT c.oid::regclass::text AS name {_OURS_TO_READ}
      AND (c.relkind IN ('r', 'p', 'm') AND NOT has_table_privilege(c.oid, 'SELECT')
           OR c.relkind = 'S' AND NOT has_sequence_privilege(c.oid, 'SELECT')
           OR NOT has_schema_privilege(n.oid, 'USAGE'))
    ORDER BY 1
"""

# pg_read_all_data does not reach large objects (has_largeobject_privilege came with PostgreSQL 18)
_UNREADABLE_OBJECTS = """
    SELECT 'large object ' || m.oid AS name FROM pg_largeobject_metadata m, pg_roles r
    WHERE r.rolname = current_user AND NOT r.rolsuper AND current_setting('lo_compat_privileges') <> 'on'
      AND NOT pg_has_role(m.lomowner, 'USAGE')
      AND NOT EXISTS (SELECT FROM aclexplode(m.lomacl) a WHERE a.privilege_type = 'SELECT'
                      AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE')))
    ORDER BY m.oid LIMIT 1000
"""
