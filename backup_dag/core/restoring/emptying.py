"""How a database is emptied within a transaction: the SQL that drops all that initdb did not put there.

What a database may hold is found in its catalogs, and named by `pg_identify_object`, so that one list
serves every kind and version. Objects of initdb's own have numbers below 16384 (FirstNormalObjectId in
PostgreSQL's transam.h).
"""

_SECONDS_FOR_LOCKS = 60

_OURS = "o.oid >= 16384"
_NAMESPACE = "(SELECT oid FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema')"
_FIRST = ("pg_event_trigger", "pg_publication", "pg_extension")
_IN_SCHEMAS = {
    "pg_class": "relnamespace",
    "pg_proc": "pronamespace",
    "pg_type": "typnamespace",
    "pg_operator": "oprnamespace",
    "pg_opfamily": "opfnamespace",
    "pg_collation": "collnamespace",
    "pg_conversion": "connamespace",
    "pg_ts_config": "cfgnamespace",
    "pg_ts_dict": "dictnamespace",
    "pg_ts_parser": "prsnamespace",
    "pg_ts_template": "tmplnamespace",
}
_OF_THE_DATABASE = (
    *("pg_cast", "pg_transform", "pg_foreign_server", "pg_foreign_data_wrapper"),
    *("pg_language", "pg_am"),
)
_ON_ITS_OWN = """NOT EXISTS (
    SELECT FROM pg_depend d
    WHERE d.classid = '{}'::regclass AND d.objid = o.oid AND d.deptype = 'i' AND d.refobjid <> o.oid
)"""
_ONLY = {
    "pg_class": "AND o.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')",
    "pg_type": "AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = o.oid)"
    " AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = o.typrelid AND c.relkind <> 'c')"
    " AND o.typtype <> 'm'",
}


def _named(catalogs: dict[str, str], alone: str = "true") -> str:
    """A query for the objects of some catalogs that are not initdb's, by kind and name."""
    found = " UNION ALL ".join(
        f"SELECT '{name}'::regclass::oid AS class, o.oid, {turn} AS turn FROM {name} o"
        f" WHERE {_OURS} {where} {_ONLY.get(name, '')} AND {alone.format(name)}"
        for turn, (name, where) in enumerate(catalogs.items())
    )
    return (
        "SELECT replace(replace(i.type, '-', ' '), ' object', '') AS type, i.identity, f.turn"
        f" FROM ({found}) f, pg_identify_object(f.class, f.oid, 0) i"
    )


_STEPS = (
    dict.fromkeys(_FIRST, ""),
    {"pg_namespace": f"AND o.oid IN {_NAMESPACE}"},
    {name: f"AND o.{column} IN {_NAMESPACE}" for name, column in _IN_SCHEMAS.items()},
    dict.fromkeys(_OF_THE_DATABASE, ""),
)

_KINDS = "(VALUES ('r', 'TABLES'), ('S', 'SEQUENCES'), ('f', 'FUNCTIONS'), ('T', 'TYPES'), ('n', 'SCHEMAS'),\
 ('L', 'LARGE OBJECTS')) k(objtype, said)"

_DEFAULT_PRIVILEGES = f"""
SELECT said FROM (
    SELECT d.oid, 1 AS turn, format('ALTER DEFAULT PRIVILEGES FOR ROLE %I%s REVOKE ALL ON %s FROM %s',
        pg_get_userbyid(d.defaclrole),
        CASE d.defaclnamespace WHEN 0 THEN ''
                               ELSE format(' IN SCHEMA %s', d.defaclnamespace::regnamespace) END,
        k.said, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END) AS said
    FROM pg_default_acl d JOIN {_KINDS} ON k.objtype = d.defaclobjtype::text, aclexplode(d.defaclacl) a
    UNION
    SELECT d.oid, 2, format('ALTER DEFAULT PRIVILEGES FOR ROLE %I GRANT %s ON %s TO %s',
        pg_get_userbyid(d.defaclrole), a.privilege_type, k.said,
        CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
    FROM pg_default_acl d JOIN {_KINDS} ON k.objtype = d.defaclobjtype::text,
         aclexplode(acldefault(CASE d.defaclobjtype WHEN 'S' THEN 's' ELSE d.defaclobjtype END,
                               d.defaclrole)) a
    WHERE d.defaclnamespace = 0
) s ORDER BY oid, turn
"""

_ROUTINES = "('function', 'procedure', 'aggregate', 'window function')"
_RELATIONS = "('table', 'view', 'materialized view', 'sequence', 'foreign table')"

_SYSTEM_GRANTS = f"""
WITH changed AS (
    SELECT class, oid, acl, coalesce(i.initprivs, acldefault(kind, owner)) AS initial
    FROM (SELECT 'pg_proc'::regclass AS class, oid, proacl AS acl, 'f'::"char" AS kind, proowner AS owner
          FROM pg_proc
          UNION ALL
          SELECT 'pg_class', oid, relacl, CASE relkind WHEN 'S' THEN 's'::"char" ELSE 'r' END, relowner
          FROM pg_class
          UNION ALL SELECT 'pg_namespace', oid, nspacl, 'n', nspowner FROM pg_namespace
          UNION ALL SELECT 'pg_type', oid, typacl, 'T', typowner FROM pg_type
          UNION ALL SELECT 'pg_language', oid, lanacl, 'l', lanowner FROM pg_language) a
    LEFT JOIN pg_init_privs i ON i.objoid = a.oid AND i.classoid = a.class AND i.objsubid = 0
    WHERE oid < 16384 AND acl IS NOT NULL AND acl <> coalesce(i.initprivs, acldefault(kind, owner))
), named AS (
    SELECT c.*, CASE WHEN o.type IN {_ROUTINES} THEN 'ROUTINE' WHEN o.type IN {_RELATIONS} THEN 'TABLE'
                     ELSE upper(o.type) END || ' ' || o.identity AS what
    FROM changed c, pg_identify_object(c.class, c.oid, 0) o
)
SELECT said FROM (
    SELECT DISTINCT 1 AS turn, format('REVOKE ALL ON %s FROM %s', what,
        CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END) AS said
    FROM named, aclexplode(acl) a
    UNION ALL
    SELECT 2, format('GRANT %s ON %s TO %s', a.privilege_type, what,
        CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
    FROM named, aclexplode(initial) a
) s ORDER BY turn
\\gexec
"""

_PUBLIC = """
SELECT 'CREATE SCHEMA public' WHERE NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'public')
\\gexec
SELECT format('ALTER SCHEMA public OWNER TO %I', r.rolname)
FROM pg_namespace n, pg_roles r
WHERE n.nspname = 'public' AND n.nspowner <> r.oid
  AND r.oid = CASE WHEN current_setting('server_version_num')::int >= 150000 THEN 6171 ELSE 10 END
\\gexec
SELECT 'COMMENT ON SCHEMA public IS ' || quote_literal('standard public schema')
WHERE obj_description('public'::regnamespace, 'pg_namespace') IS DISTINCT FROM 'standard public schema'
\\gexec
"""
"""6171 is pg_database_owner, 10 initdb's superuser (pg_authid.dat). Grants on it are a system object's."""

_TABLES = (
    f"FROM pg_class c WHERE c.relkind IN ('r', 'p') AND c.oid >= 16384 AND c.relnamespace IN {_NAMESPACE}"
)


def locking() -> bytes:
    """What psql runs so that no table is written to any more: reading goes on, so a dump can be made.

    Large objects cannot be locked so: reading one takes a writer's lock (`open_lo_relation` in inv_api.c).
    """
    return (
        "SELECT pg_catalog.set_config('search_path', '', false);\n"
        f"SET LOCAL lock_timeout = '{_SECONDS_FOR_LOCKS}s';\n"
        "SELECT format('LOCK TABLE ONLY %s IN SHARE MODE', c.oid::regclass)"
        f" {_TABLES} ORDER BY c.oid\n\\gexec\n"
    ).encode()


LARGE_OBJECT_WRITES = b"""
SELECT pg_catalog.pg_stat_clear_snapshot();
SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_catalog.pg_stat_all_tables
WHERE relid = 'pg_catalog.pg_largeobject'::regclass"""
"""How often large objects were written to, as far as the server has been told."""


def not_locked() -> bytes:
    """A query for tables that came after the locks: one line each, none where all is well."""
    ours = "SELECT l.relation FROM pg_locks l WHERE l.pid = pg_backend_pid() AND l.mode = 'ShareLock'"
    return f"SELECT c.oid::regclass {_TABLES} AND c.oid NOT IN ({ours})".encode()


def emptying() -> bytes:
    """What psql runs to drop everything in a database that initdb did not put there, and to undo what was
    changed of what it did."""
    drop = "SELECT format('DROP %s IF EXISTS %s CASCADE', type, identity)"
    drops = [f"{drop} FROM ({_named(step, _ON_ITS_OWN)}) s ORDER BY turn\n\\gexec\n" for step in _STEPS]
    objects = "SELECT count(pg_catalog.lo_unlink(oid)) FROM pg_largeobject_metadata;\n"
    begin = (
        "SELECT pg_catalog.set_config('search_path', '', false);\n"
        "SET LOCAL client_min_messages = warning;\n"
        f"SET LOCAL lock_timeout = '{_SECONDS_FOR_LOCKS}s';\n"
    )
    privileges = f"{_DEFAULT_PRIVILEGES}\\gexec\n"
    return "".join([begin, *drops, objects, privileges, _PUBLIC, _SYSTEM_GRANTS]).encode()


def what_is_left() -> bytes:
    """A query for what emptying should have dropped: one line each, none where all is well."""
    said = " UNION ALL ".join(f"SELECT type, identity FROM ({_named(step)}) s" for step in _STEPS)
    return f"SELECT type || ' ' || identity FROM ({said}) s WHERE identity <> 'public'".encode()
