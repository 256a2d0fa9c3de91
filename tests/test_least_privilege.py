"""deploy/'s role and policies: enough for a backup, and for nothing else."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import boto3
import psycopg2
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from backup_dag.core.errors import StoreError
from backup_dag.core.settings import Settings
from backup_dag.core.store.s3 import S3Store
from demo.servers import Postgres
from tests.cleaning import made, put
from tests.conftest import Here, Terminal, asked, make_database, name_of, run_sql
from tests.s3_users import S3WithUsers
from tests.test_restore import done
from tests.test_units import DEPLOY

MakeTerminal = Callable[[str], Terminal]
ROLE = DEPLOY / "postgres-role.sql"

OBJECTS = (
    "CREATE SCHEMA theirs",
    "CREATE TABLE theirs.orders AS SELECT n, 'order ' || n AS what FROM generate_series(1, 50) n",
    "ALTER TABLE theirs.orders ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    "CREATE SEQUENCE theirs.numbers",
    "CREATE MATERIALIZED VIEW theirs.seen AS SELECT 1 AS one",
    "CREATE FUNCTION theirs.one() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "SELECT lo_from_bytea(4711, 'an object')",
    "ALTER LARGE OBJECT 4711 OWNER TO {owner}",
    "ALTER SCHEMA theirs OWNER TO {owner}",
    "ALTER TABLE theirs.orders OWNER TO {owner}",
    "ALTER DATABASE {name} OWNER TO {owner}",
)
WRITES = (
    "INSERT INTO theirs.orders VALUES (51)",
    "UPDATE theirs.orders SET n = 0",
    "DELETE FROM theirs.orders",
    "TRUNCATE theirs.orders",
    "SELECT FROM theirs.orders FOR UPDATE",
    "LOCK TABLE theirs.orders IN ACCESS EXCLUSIVE MODE",
    "COPY theirs.orders FROM PROGRAM 'true'",
    "COPY theirs.orders TO PROGRAM 'true'",
    "COPY theirs.orders TO '/tmp/never'",
    "DROP TABLE theirs.orders",
    "ALTER TABLE theirs.orders ADD COLUMN later int",
    "CREATE INDEX ON theirs.orders (n)",
    "CREATE TABLE theirs.mine (a int)",
    "CREATE TABLE public.mine (a int)",
    "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE FUNCTION theirs.one() RETURNS int LANGUAGE sql AS 'SELECT 2'",
    "REFRESH MATERIALIZED VIEW theirs.seen",
    "COMMENT ON TABLE theirs.orders IS 'ours'",
    "SELECT nextval('theirs.numbers')",
    "SELECT setval('theirs.numbers', 9)",
    "SELECT lo_put(4711, 0, 'x')",
    "SELECT lo_unlink(4711)",
    "CREATE SCHEMA mine",
    "CREATE DATABASE mine",
    "CREATE ROLE mine",
    "ALTER ROLE backup SUPERUSER",
    "ALTER ROLE backup CREATEROLE",
    "GRANT pg_write_all_data TO backup",
    "DROP DATABASE {name}",
    "ALTER DATABASE {name} SET work_mem = '1GB'",
    "ALTER SYSTEM SET work_mem = '1GB'",
    "SELECT pg_reload_conf()",
    "SELECT pg_read_file('PG_VERSION')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
)


@pytest.fixture
def theirs(each_postgres: Postgres) -> Iterator[str]:
    """The url, as deploy's role, of a database that somebody else owns."""
    server = each_postgres
    url = make_database(server)
    name, owner = name_of(url), f"{name_of(url)}_owner"
    run_sql(server.url(), f"CREATE ROLE {owner}")
    run_sql(url, *(each.format(name=name, owner=owner) for each in OBJECTS))
    psql = [str(server.bin_dir / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, "-f", str(ROLE)]
    subprocess.run(psql, check=True, capture_output=True)
    yield url.replace("postgres@", "backup@")
    run_sql(url, "DROP OWNED BY backup")
    run_sql(server.url(), f"DROP DATABASE {name} WITH (FORCE)", "DROP ROLE backup", f"DROP ROLE {owner}")


def granting_large_objects() -> str:
    """The statement that the file has for those who have some."""
    [found] = re.findall(r"^--    (DO \$\$\n.*?^--    \$\$;)", ROLE.read_text(), re.M | re.S)
    return re.sub(r"^--    ", "", found, flags=re.M)


def test_the_role_backs_up_what_others_own(theirs: str, terminal: MakeTerminal, here: Here) -> None:
    ours = terminal(theirs)
    refused = done(here(ours, "backup"), 4)
    assert "permission denied for large object" in refused.stderr
    run_sql(theirs.replace("backup@", "postgres@"), granting_large_objects())
    [said] = json.loads(done(here(ours, "backup", "--json")).stdout)
    manifest = said["manifest"]
    assert manifest["content"]["tables"]["theirs.orders"]["rows"] == 50  # row security hides none
    assert manifest["content"]["large_objects"]["count"] == 1
    assert manifest["globals"]["password_hashes"] is True
    assert manifest["warnings"] == []
    done(here(ours, "verify"))


def test_the_role_writes_nothing(theirs: str) -> None:
    run_sql(theirs.replace("backup@", "postgres@"), granting_large_objects())
    allowed = []
    for statement in WRITES:
        said = statement.format(name=name_of(theirs))
        with closing(psycopg2.connect(theirs)) as connection, connection.cursor() as cursor:
            connection.autocommit = not said.startswith("LOCK")
            try:
                cursor.execute(said)
                allowed.append(said)
            except psycopg2.Error as error:
                if error.pgcode != "42501":
                    allowed.append(f"{said}: {error}")
    assert allowed == []
    assert asked(theirs, "SELECT count(*), max(n) FROM theirs.orders") == [(50, 50)]


# --- The bucket --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded_s3(ground: Path) -> Iterator[S3WithUsers]:
    with S3WithUsers(ground / "s3-with-users") as server:
        server.create_bucket(server.bucket)
        server.create_bucket("anothers")
        yield server


def as_user(server: S3WithUsers, user: str) -> Any:
    keys = server.environment_of(user)
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


def refused(call: Callable[..., object], **words: Any) -> bool:
    try:
        call(**words)
    except ClientError as error:
        return bool(error.response["Error"]["Code"] == "AccessDenied")
    return False


def test_the_policy_is_enough_for_nights_and_restores_and_removes_nothing(
    guarded_s3: S3WithUsers, large: str, terminal: MakeTerminal, here: Here
) -> None:
    ours, night = terminal(large), guarded_s3.environment_of("night")
    done(here(ours, "backup", **night))  # in several parts
    done(here(ours, "verify", **night))
    doctor = here(ours, "doctor", "--json", **night).stdout
    [store] = [finding for finding in json.loads(doctor) if finding["what"] == "s3 store"]
    assert (store["verdict"], "wrote, read and removed" in store["found"]) == ("ok", True)
    done(here(ours, "restore", "--dry-run", **night))
    done(here(ours, "list", **night))
    client, bucket = as_user(guarded_s3, "night"), guarded_s3.bucket
    names = [found["Key"] for found in guarded_s3.client().list_objects_v2(Bucket=bucket)["Contents"]]
    assert len(names) >= 5
    for name in names:
        assert refused(client.delete_object, Bucket=bucket, Key=name), name
    removing = {"Objects": [{"Key": name} for name in names]}
    with suppress(ClientError):
        client.delete_objects(Bucket=bucket, Delete=removing)
    left = [found["Key"] for found in guarded_s3.client().list_objects_v2(Bucket=bucket)["Contents"]]
    assert left == names


@pytest.mark.parametrize("user", S3WithUsers.users)
def test_no_user_reaches_another_bucket_or_changes_the_rules(guarded_s3: S3WithUsers, user: str) -> None:
    client, bucket = as_user(guarded_s3, user), guarded_s3.bucket
    assert refused(client.list_objects_v2, Bucket="anothers")
    assert refused(client.put_object, Bucket="anothers", Key="backup_x", Body=b"")
    assert refused(client.create_bucket, Bucket="more")
    assert refused(client.delete_bucket, Bucket=bucket)
    assert refused(client.put_bucket_policy, Bucket=bucket, Policy="{}")
    assert refused(
        client.put_bucket_versioning, Bucket=bucket, VersioningConfiguration={"Status": "Suspended"}
    )
    assert refused(
        client.put_bucket_lifecycle_configuration,
        Bucket=bucket,
        LifecycleConfiguration={
            "Rules": [{"ID": "a", "Status": "Enabled", "Expiration": {"Days": 1}, "Filter": {}}]
        },
    )
    guarded_s3.client().put_object(Bucket=bucket, Key="precious", Body=b"somebody else's")
    assert refused(client.delete_object, Bucket=bucket, Key="precious")


def test_the_policy_for_cleaning_up_removes_backups(
    guarded_s3: S3WithUsers, settings: Settings, tmp_path: Path
) -> None:
    ours = settings.model_copy(update={"aws_s3_bucket": guarded_s3.bucket, "backup_retention_days": 7})
    old = made(9, name="orders")
    stores = {user: S3Store(as_user(guarded_s3, user), ours) for user in guarded_s3.users}
    put(stores["night"], tmp_path / "old", old)
    for name in [listed.name for listed in stores["night"].list(old.backup)]:
        with pytest.raises(StoreError):
            stores["night"].remove(name)
        stores["cleaner"].remove(name)
    assert list(stores["night"].list(old.backup)) == []
