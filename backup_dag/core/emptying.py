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

_PUBLIC = """
SELECT 'CREATE SCHEMA public' WHERE NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'public')
\\gexec
SELECT format('REVOKE ALL ON SCHEMA public FROM %s',
              CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
FROM pg_namespace n JOIN pg_init_privs i ON i.objoid = n.oid AND i.classoid = 'pg_namespace'::regclass,
     aclexplode(n.nspacl) a
WHERE n.nspname = 'public' AND n.nspacl <> i.initprivs
UNION ALL
SELECT format('GRANT %s ON SCHEMA public TO %s', a.privilege_type,
              CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
FROM pg_namespace n JOIN pg_init_privs i ON i.objoid = n.oid AND i.classoid = 'pg_namespace'::regclass,
     aclexplode(i.initprivs) a
WHERE n.nspname = 'public' AND n.nspacl <> i.initprivs
\\gexec
SELECT 'COMMENT ON SCHEMA public IS ' || quote_literal('standard public schema')
WHERE obj_description('public'::regnamespace, 'pg_namespace') IS DISTINCT FROM 'standard public schema'
\\gexec
"""


def emptying() -> bytes:
    """What psql runs to drop everything in a database that initdb did not put there."""
    drop = "SELECT format('DROP %s IF EXISTS %s CASCADE', type, identity)"
    drops = [f"{drop} FROM ({_named(step, _ON_ITS_OWN)}) s ORDER BY turn\n\\gexec\n" for step in _STEPS]
    objects = "SELECT count(pg_catalog.lo_unlink(oid)) FROM pg_largeobject_metadata;\n"
    begin = (
        "SELECT pg_catalog.set_config('search_path', '', false);\n"
        "SET LOCAL client_min_messages = warning;\n"
        f"SET LOCAL lock_timeout = '{_SECONDS_FOR_LOCKS}s';\n"
    )
    return "".join([begin, *drops, objects, f"{_DEFAULT_PRIVILEGES}\\gexec\n", _PUBLIC]).encode()


def what_is_left() -> bytes:
    """A query for what emptying should have dropped: one line each, none where all is well."""
    said = " UNION ALL ".join(f"SELECT type, identity FROM ({_named(step)}) s" for step in _STEPS)
    return f"SELECT type || ' ' || identity FROM ({said}) s WHERE identity <> 'public'".encode()
