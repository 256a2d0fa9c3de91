-- A role that may read everything in a database, for backups. PostgreSQL 14 or newer.
--
-- As a superuser, in the database that is to be backed up:
--     psql -X -v ON_ERROR_STOP=1 -d shop -f deploy/postgres-role.sql
-- Then give it a password, where it is not written to a file or a shell's history:
--     psql -X -d shop -c '\password backup'
-- and a line in pg_hba.conf if the backup host is not let in yet. See `backup-dag doctor` last.

CREATE ROLE backup LOGIN;

-- Every table, view and sequence of every database of this server, those made later included.
-- That includes the catalog pg_authid, and so the password hashes of all roles: the backup holds
-- them (encrypted, in its globals file), and whoever has this role's password can read them.
GRANT pg_read_all_data TO backup;

-- Row security would hide rows from this role. pg_dump would refuse, and no backup would be made.
-- Only a superuser can give this away. Leave it out where no table has row security.
ALTER ROLE backup BYPASSRLS;

-- Large objects: up to PostgreSQL 18, pg_read_all_data does not cover them, and pg_dump stops with
-- "permission denied for large object". There are two ways; leave both out where there are none.
-- 1. Every large object that is there now. Run it again whenever new ones may have come:
--
--    DO $$
--    DECLARE
--        object oid;
--    BEGIN
--        FOR object IN SELECT oid FROM pg_largeobject_metadata LOOP
--            EXECUTE format('GRANT SELECT ON LARGE OBJECT %s TO backup', object);
--        END LOOP;
--    END
--    $$;
--
-- 2. All of them, for good. This switches off the permissions of large objects for this role, those
--    against writing included, so weigh it:
--
--    ALTER ROLE backup SET lo_compat_privileges = on;

-- Three connections for a backup (the session with its snapshot and lock, pg_dump, and beside it for
-- a moment pg_dumpall), and some room for a verb beside it.
ALTER ROLE backup CONNECTION LIMIT 5;

-- What this role cannot do: change tables, their rows or sequences, make schemas, databases or roles, read or
-- write files of the server, end others' sessions, or restore. What PostgreSQL lets every role do it may do
-- too: temporary tables, and large objects of its own. Before PostgreSQL 15 also tables in the schema public:
--    REVOKE CREATE ON SCHEMA public FROM PUBLIC;
-- What only a superuser's backup has: subscriptions of logical replication (pg_dump leaves them out
-- with a warning).
-- What no backup of a single database has: other databases, tablespaces' places, postgresql.conf,
-- pg_hba.conf.
