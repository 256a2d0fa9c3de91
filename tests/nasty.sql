-- Everything that a restore may lose or bring back in another order.
CREATE SCHEMA "Wéird ""Schema""";
CREATE TYPE mood AS ENUM ('sad', 'it''s ok', 'happy');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE every_type (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    a smallint, b bigint, c numeric(20, 5), d real, e double precision, f money,
    g varchar(10), h char(5), i text, j bytea, k timestamp, l timestamptz, m date, n time, o timetz,
    p interval, q boolean, r point, s line, t lseg, u box, v path, w polygon, x circle,
    y cidr, z inet, aa macaddr, ab macaddr8, ac bit(5), ad bit varying, ae tsvector, af tsquery,
    ag uuid, ah xml, ai json, aj jsonb, ak jsonpath, al int[], am text[][], an mood, ao pair, ap positive,
    aq int4range, ar tstzrange, at int4multirange, au name, av oid, aw regclass, ax pg_lsn, ay "char",
    az int GENERATED ALWAYS AS (a * 2) STORED
);
INSERT INTO every_type VALUES (DEFAULT, 1, 2, 3.5, 0.1, 1e300, 4.20, 'vär', 'ch', E'a\\b\tc\nd\r', '\x00ff5c',
    '2026-01-31 02:00', '2026-01-31 02:00+01', 'infinity', '02:00', '02:00+05', '1 mon 2 days -3 hours', true,
    '(1,2)', '{1,2,3}', '[(1,2),(3,4)]', '(3,4),(1,2)', '[(1,2),(3,4)]', '((1,2),(3,4),(5,6))', '<(1,2),3>',
    '10.0.0.0/8', '::1', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', B'10101', B'1', 'a:1 b:2', 'a & b',
    '00000000-0000-0000-0000-000000000001', NULL, '{"a": 1}', '{"b": [1, null]}', '$.a', '{1,NULL,3}',
    '{{a,"b,"},{"",NULL}}', 'it''s ok', '(1,"x,y")', 7, '[1,5)', '["2026-01-01","2026-02-01")',
    '{[1,3),[5,7)}', 'name', 42, 'pg_class', '0/16B3748', 'z');
INSERT INTO every_type (i) VALUES (NULL), (''), ('\.'), (E'\\.'), ('NaN'), (repeat('x', 100000));
SELECT format('CREATE TABLE all_types_there_are (%s)',
              string_agg(format('%I %s', 'c' || t.oid, t.oid::regtype), ', ' ORDER BY t.oid))
FROM pg_type t
WHERE t.typnamespace = 'pg_catalog'::regnamespace AND t.typtype IN ('b', 'r', 'm')
  AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)
  AND t.typname !~ '^pg_(node_tree|ndistinct|dependencies|mcv_list|brin_|ddl_command)' AND t.typname <> 'aclitem'
\gexec
SELECT format('INSERT INTO all_types_there_are (%I) VALUES (%L)', 'c' || v.type::regtype::oid, v.value)
FROM (VALUES ('xid', '7'), ('cid', '8'), ('tid', '(1,2)'), ('int2vector', '1 2'), ('oidvector', '3 4'),
             ('regproc', 'now'), ('regprocedure', 'abs(int)'), ('regoper', 'pg_catalog.||/'),
             ('regtype', 'int4'), ('regrole', 'postgres'), ('regnamespace', 'public'), ('refcursor', 'c'),
             ('txid_snapshot', '10:20:10,14'), ('pg_snapshot', '10:20:10,14'), ('xid8', '9'),
             ('numrange', '[1.5,2.5)'), ('tsrange', 'empty'), ('daterange', '[2026-01-01,)'),
             ('int8range', '(,)'), ('nummultirange', '{}'), ('datemultirange', '{[2026-01-01,2026-02-01)}'),
             ('regconfig', 'simple'), ('regcollation', '"C"'), ('float4', '-0'), ('timestamptz', '-infinity'),
             ('money', '-1'), ('numeric', 'NaN'), ('jsonpath', '$."a b"')) v (type, value)
\gexec
CREATE TABLE "Wéird ""Schema"""."täble; DROP" ("sélect" int, "a ""b""" text);
INSERT INTO "Wéird ""Schema"""."täble; DROP" SELECT n, 'ß' || n FROM generate_series(1, 50) n;
CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES;
INSERT INTO no_columns DEFAULT VALUES;
CREATE TABLE parent (a int, b text);
CREATE TABLE child (c int, b text) INHERITS (parent);
ALTER TABLE parent ADD COLUMN d int DEFAULT 5;
INSERT INTO child (a, b, c) SELECT n, 'child', n FROM generate_series(1, 20) n;
INSERT INTO parent VALUES (1, 'parent', 2);
CREATE TABLE moved (a int, filler text) WITH (fillfactor = 10);
INSERT INTO moved SELECT n, repeat('y', 300) FROM generate_series(1, 200) n;
UPDATE moved SET filler = 'z' WHERE a % 3 = 0;
CREATE TABLE parts (day date NOT NULL, what text) PARTITION BY RANGE (day);
CREATE TABLE parts_old PARTITION OF parts FOR VALUES FROM (MINVALUE) TO ('2026-01-01');
CREATE TABLE parts_new PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO (MAXVALUE);
INSERT INTO parts SELECT date '2025-12-01' + n, 'day ' || n FROM generate_series(1, 60) n;
CREATE UNLOGGED TABLE scratch AS SELECT 1 AS one;
CREATE TABLE secret (owner name, what text);
ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON secret USING (owner = current_user);
INSERT INTO secret VALUES ('nobody', 'hidden'), ('postgres', 'seen');
CREATE FUNCTION looks_like_copy() RETURNS text LANGUAGE plpgsql AS $body$
BEGIN
    -- Data for Name: fake; Type: TABLE DATA; Schema: public; Owner: postgres
    RETURN $q$
COPY public.fake (a) FROM stdin;
1
\.
$q$;
END $body$;
CREATE FUNCTION touched() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.b := NEW.b || '!'; RETURN NEW; END $$;
CREATE TRIGGER touch BEFORE INSERT ON parent FOR EACH ROW EXECUTE FUNCTION touched();
CREATE FUNCTION noticed() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM 1; END $$;
CREATE EVENT TRIGGER notice_tables ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION noticed();
CREATE VIEW seen AS SELECT a, b FROM parent WHERE a > 0;
CREATE MATERIALIZED VIEW counted AS SELECT b, count(*) FROM parent GROUP BY b;
CREATE SEQUENCE spread START 1000 INCREMENT 7;
SELECT nextval('spread'), nextval('spread');
SELECT lo_from_bytea(0, '\x0102030405'), lo_from_bytea(0, decode(repeat('ab', 5000), 'hex'));
COMMENT ON TABLE parent IS E'a\nline; --';
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO PUBLIC;
GRANT SELECT ON parent TO PUBLIC;
CREATE INDEX ON parent (lower(b)) WHERE a > 0;
CREATE FOREIGN DATA WRAPPER nowhere;
CREATE SERVER elsewhere FOREIGN DATA WRAPPER nowhere OPTIONS (host 'nowhere.invalid');
CREATE FOREIGN TABLE far_away (a int) SERVER elsewhere;
