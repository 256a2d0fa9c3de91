"""The worst day: a backup comes back by its own two lines, with nothing of ours installed."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import quote

import psycopg2
import pytest

from demo.sample import load
from demo.servers import Postgres
from tests.conftest import KEY, Here, Terminal, make_database, run_sql

SECRET = "it's \\ a secret"
DATABASE = 'Größe "1" of o\'shop'
ORDINARY = ("bash", "sh", "env", "cat", "sha256sum", "gpg", "gunzip", "gzip")
POSTGRES = ("psql", "createdb", "pg_restore")
PROPERTIES = (
    "dbname",
    "owner",
    "encoding",
    "collate",
    "ctype",
    "connection_limit",
    "grants",
    "comment",
    "settings",
)


@pytest.fixture(scope="session")
def lost(postgres: Postgres) -> Iterator[str]:
    """The sample in a database that has one of every property, and a name that needs quoting."""
    quoted = '"' + DATABASE.replace('"', '""') + '"'
    make_database(postgres, DATABASE)
    url = postgres.url(DATABASE)
    load(url, rows=1500)
    run_sql(
        url,
        "CREATE ROLE shop_owner LOGIN PASSWORD 'of the owner' VALID UNTIL '2039-01-01 00:00+00'",
        'CREATE ROLE "shop\'s staff" NOLOGIN',
        'GRANT shop_reader TO "shop\'s staff"',
        f"ALTER DATABASE {quoted} OWNER TO shop_owner",
        f"ALTER DATABASE {quoted} CONNECTION LIMIT 17",
        f"COMMENT ON DATABASE {quoted} IS E'the shop''s\\n\\\\ own'",
        f"REVOKE ALL ON DATABASE {quoted} FROM PUBLIC",
        f'GRANT CONNECT, TEMPORARY ON DATABASE {quoted} TO "shop\'s staff"',
        f'ALTER DATABASE {quoted} SET search_path = shop, "Weird Names", public',
        f"ALTER DATABASE {quoted} SET work_mem = '11MB'",
        f"ALTER DATABASE {quoted} SET datestyle = 'German, DMY'",
        f"ALTER DATABASE {quoted} SET app.secret = E'it''s \\\\ a secret'",
        f"ALTER ROLE shop_owner IN DATABASE {quoted} SET statement_timeout = '7s'",
    )
    yield url
    run_sql(postgres.url(), f"DROP DATABASE {quoted} WITH (FORCE)", 'DROP ROLE shop_owner, "shop\'s staff"')


@pytest.fixture(scope="session")
def bare(ground: Path, postgres: Postgres) -> Iterator[Postgres]:
    """Another server, of the same version, on which there is nothing."""
    with Postgres(ground / "bare", postgres.version) as server:
        yield server


@dataclass(frozen=True)
class BareHost:
    """A shell with the plain tools and no others, the passphrase in its gpg's settings."""

    home: Path
    server: Postgres

    def run(self, line: str, folder: Path) -> None:
        environment = {
            "PATH": str(self.home / "bin"),
            "HOME": str(self.home),
            "GNUPGHOME": str(self.home / "gnupg"),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.server.port),
            "PGUSER": "postgres",
        }
        script = ["bash", "-c", f"set -euo pipefail\n{line}"]
        ended = subprocess.run(
            script, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, f"{line}\n{ended.stdout}{ended.stderr}"
        unexpected = [
            said
            for said in ended.stderr.splitlines()
            if "ERROR" in said and 'role "postgres" already exists' not in said
        ]
        assert unexpected == []


@pytest.fixture
def bare_host(ground: Path, bare: Postgres, tmp_path: Path) -> Iterator[BareHost]:
    home = ground / "bare-host"
    (home / "bin").mkdir(parents=True, exist_ok=True)
    (home / "gnupg").mkdir(mode=0o700, exist_ok=True)
    (home / "passphrase").write_text(KEY + "\n")
    options = f"batch\npinentry-mode loopback\npassphrase-file {home}/passphrase\n"
    (home / "gnupg" / "gpg.conf").write_text(options)
    programs = {name: Path(which(name) or "") for name in ORDINARY}
    programs |= {name: bare.bin_dir / name for name in POSTGRES}
    for name, program in programs.items():
        (home / "bin" / name).unlink(missing_ok=True)
        (home / "bin" / name).symlink_to(program)
    yield BareHost(home, bare)
    subprocess.run(
        ["gpgconf", "--kill", "all"], env={**os.environ, "GNUPGHOME": str(home / "gnupg")}, check=True
    )
    roles = ask(bare.url(), "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_|^postgres$'")
    everything = ['"' + role.replace('"', '""') + '"' for (role,) in roles]
    names = [
        row[0]
        for row in ask(bare.url(), "SELECT datname FROM pg_database WHERE datname !~ 'template|^postgres$'")
    ]
    drop = ['DROP DATABASE "' + name.replace('"', '""') + '" WITH (FORCE)' for name in names]
    run_sql(bare.url(), *drop, *(f"DROP ROLE {role}" for role in everything))


def ask(url: str, query: str) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def back_up(here: Here, ours: Terminal, **changed: str) -> Mapping[str, Any]:
    """The manifest of a new backup."""
    ended = here(ours, "backup", "--json", **changed)
    assert ended.returncode == 0, ended.stderr
    manifest: Mapping[str, Any] = json.loads(ended.stdout)[0]["manifest"]
    return manifest


WAYS = {
    "the default": ({}, "sql.gz.gpg"),
    "the custom format": ({"BACKUP_FORMAT": "custom"}, "dump.gz.gpg"),
    "no encryption": ({"BACKUP_ENCRYPTION": "off"}, "sql.gz"),
}


@pytest.mark.parametrize("way", WAYS)
def test_two_lines_bring_everything_back_on_a_bare_server(
    here: Here, lost: str, terminal: Callable[[str], Terminal], bare_host: BareHost, way: str
) -> None:
    changed, ending = WAYS[way]
    ours = terminal(lost)
    before = back_up(here, ours, **changed)
    assert before["artifact"]["name"].endswith(ending)
    assert len(before["recover"]) == 2
    for line in before["recover"]:
        bare_host.run(line, ours.backups)
    recovered = bare_host.server.url(DATABASE)
    after = back_up(here, ours, DATABASE_URL=recovered, BACKUP_DIR=str(ours.folder / "after"))
    assert after["content"] == before["content"]
    assert [after["source"][name] for name in PROPERTIES] == [before["source"][name] for name in PROPERTIES]
    assert roles(recovered) == roles(lost)
    assert ask(recovered, "SHOW app.secret") == ask(lost, "SHOW app.secret") == [(SECRET,)]
    assert ask(recovered, "SHOW search_path") == ask(lost, "SHOW search_path")
    assert ask(recovered, "SHOW datestyle") == ask(lost, "SHOW datestyle")


def roles(url: str) -> list[tuple[Any, ...]]:
    """The sample's roles as the server has them, password hashes and memberships included."""
    return ask(
        url,
        """
        SELECT rolname, rolcanlogin, rolsuper, rolinherit, rolpassword, rolvaliduntil,
               (SELECT array_agg(roleid::regrole::text ORDER BY 1) FROM pg_auth_members WHERE member = a.oid)
        FROM pg_authid a WHERE rolname LIKE 'shop%' ORDER BY 1
        """,
    )


def test_the_value_of_a_setting_of_the_applications_own_is_not_in_the_manifest(
    here: Here, lost: str, terminal: Callable[[str], Terminal]
) -> None:
    ours = terminal(lost)
    manifest = back_up(here, ours)
    [path] = ours.backups.glob("*.json")
    assert "a secret" not in path.read_text()
    assert "of the owner" not in path.read_text()
    settings = {setting["name"]: setting["value"] for setting in manifest["source"]["settings"]}
    assert settings["app.secret"] is None
    assert settings["work_mem"] == "11MB"


@pytest.mark.parametrize("name", ["a=b", "-d", "two\nlines", "$HOME `id`"])
def test_a_name_that_a_shell_or_psql_could_misread_comes_back_too(
    here: Here, postgres: Postgres, terminal: Callable[[str], Terminal], bare_host: BareHost, name: str
) -> None:
    make_database(postgres, name)
    url = f"postgresql://postgres@127.0.0.1:{postgres.port}/{quote(name, safe='')}"
    run_sql(url, "CREATE TABLE t AS SELECT 1 AS one")
    ours = terminal(url)
    for line in back_up(here, ours)["recover"]:
        bare_host.run(line, ours.backups)
    assert ask(bare_host.server.url(name), "SELECT one FROM t") == [(1,)]


def readmes_recipe() -> str:
    """The README's shell block that begins with `# recover`."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    [recipe] = [
        block for block in re.findall(r"```sh\n(.*?)```", text, re.S) if block.startswith("# recover")
    ]
    return str(recipe)


def test_the_readmes_recipe_brings_a_backup_back_with_plain_tools_alone(
    here: Here, sample: str, terminal: Callable[[str], Terminal], bare_host: BareHost
) -> None:
    ours = terminal(sample)
    before = back_up(here, ours)
    recipe = readmes_recipe()
    for name, value in (("BACKUP", before["backup"]), ("DATABASE", before["source"]["dbname"])):
        assert re.search(rf"^{name}=", recipe, re.M), f"the recipe no longer says {name}="
        recipe = re.sub(rf"^{name}=.*$", f"{name}={value}", recipe, flags=re.M)
    bare_host.run(recipe, ours.backups)
    recovered = bare_host.server.url("sample")
    after = back_up(here, ours, DATABASE_URL=recovered, BACKUP_DIR=str(ours.folder / "after"))
    assert after["content"] == before["content"]
