"""The terminal: what each verb prints where, and what verification finds in a damaged copy."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from gzip import decompress
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from backup_dag import __version__
from backup_dag.core.errors import EXIT_CODES
from demo.servers import Postgres, S3Server
from tests.authentic import with_mac
from tests.conftest import KEY, Here, Terminal, make_database, run_sql

MakeTerminal = Callable[[str], Terminal]

VERBS = ["backup", "list", "status", "verify", "doctor", "metrics"]


@pytest.fixture(scope="session")
def tiny(postgres: Postgres) -> str:
    """The url of a database with two small tables. Read only, please."""
    url = make_database(postgres, "tiny")
    run_sql(
        url,
        "CREATE TABLE people AS SELECT n, 'person ' || n AS name FROM generate_series(1, 50) n",
        "CREATE TABLE sessions AS SELECT n FROM generate_series(1, 20) n",
    )
    return url


@pytest.fixture
def ours(tiny: str, terminal: MakeTerminal) -> Terminal:
    return terminal(tiny)


@pytest.fixture
def at_bucket(ours: Terminal, s3: S3Server, bucket: str) -> Terminal:
    """The same terminal with a bucket."""
    ours.environment |= {**s3.environment(), "AWS_S3_BUCKET": bucket}
    return ours


@pytest.fixture
def made(here: Here, ours: Terminal) -> "Made":
    """One backup, made by the terminal."""
    ended = here(ours, "backup", "--json")
    assert ended.returncode == 0, ended.stderr
    [document] = json.loads(ended.stdout)
    return Made(here, ours, document["manifest"])


@dataclass(frozen=True)
class Made:
    """A backup in BACKUP_DIR, and how to ask for it."""

    here: Here
    terminal: Terminal
    manifest: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.manifest["backup"])

    def file(self, ending: str) -> Path:
        return self.terminal.backups / f"{self.id}.{ending}"

    @property
    def artifact(self) -> Path:
        return self.file("sql.gz.gpg")

    def run(self, *words: str, **changed: str) -> "subprocess.CompletedProcess[str]":
        return self.here(self.terminal, *words, **changed)

    def recorded(self) -> dict[str, Any]:
        checks: dict[str, Any] = json.loads(self.file("verify.json").read_text())["checks"]
        return checks


# help and shape


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_lists_every_exit_code(here: Here, ours: Terminal, verb: str | None) -> None:
    said = here(ours, *([verb] if verb else []), "--help")
    assert said.returncode == 0
    lines = [line.strip() for line in said.stdout.splitlines()]
    assert [code for code, meaning in EXIT_CODES.items() if f"{code}  {meaning}" not in lines] == []


def test_help_of_the_program_names_every_verb(here: Here, ours: Terminal) -> None:
    said = here(ours, "-h").stdout
    assert [verb for verb in VERBS if f"\n  {verb} " not in said] == []
    assert here(ours, "--version").stdout.strip() == f"backup-dag, version {__version__}"


def test_the_terminal_does_without_dagster_and_without_boto3_until_a_bucket_is_used() -> None:
    look = "import backup_dag.cli.main, sys; assert not {'dagster', 'boto3'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", look], check=True, cwd=Path(__file__).parents[1])


def test_every_verb_prints_one_json_document_and_nothing_else_on_stdout(
    here: Here, at_bucket: Terminal
) -> None:
    at_bucket.environment["BACKUP_ENCRYPTION"] = "off"  # about which there is something to say
    for verb in VERBS:
        ended = here(at_bucket, verb, "--json")
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout)
    assert "WARNING" in here(at_bucket, "backup", "--json").stderr


ERRORS: dict[str, tuple[int, tuple[str, ...], dict[str, str]]] = {
    "no settings": (3, ("backup",), {"DATABASE_URL": ""}),
    "no server": (4, ("backup",), {"DATABASE_URL": "postgresql://u@127.0.0.1:1/d"}),
    "no backup": (5, ("verify",), {}),
    "no bucket": (7, ("verify",), {"AWS_S3_BUCKET": "no-such-bucket"}),
    "no folder": (9, ("backup",), {"BACKUP_DIR": "/dev/null"}),
}


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_too_is_one_json_document_and_is_said_on_stderr(
    here: Here, at_bucket: Terminal, error: str
) -> None:
    code, words, changed = ERRORS[error]
    ended = here(at_bucket, *words, "--json", **changed)
    document = json.loads(ended.stdout)
    assert (ended.returncode, document["exit_code"]) == (code, code)
    assert f"error: {document['error']}" in ended.stderr
    assert document["hint"] in ended.stderr
    assert document["hint"] != ""


def test_a_failed_verification_is_one_json_document_too(made: Made) -> None:
    flip(made.artifact)
    ended = made.run("verify", "--json")
    [check] = json.loads(ended.stdout)
    assert ended.returncode == 6
    assert check["address"] == str(made.artifact)
    assert check["faults"] != []
    assert "error: " in ended.stderr


def test_a_backup_whose_manifest_cannot_be_read_is_one_json_error(made: Made) -> None:
    made.file("json").write_text("{")
    ended = made.run("verify", made.id, "--json")
    assert ended.returncode == 6, ended.stderr
    assert json.loads(ended.stdout)["exit_code"] == 6


def test_one_database_out_of_two_that_fails_does_not_hide_the_one_that_was_made(
    here: Here, ours: Terminal, tiny: str
) -> None:
    """The first backup is there, so the document must say so, whatever became of the second."""
    (ours.folder / "backup.toml").write_text('[databases.gone]\nurl_env = "GONE"\n')
    gone = tiny.replace("/tiny", "/gone")
    ended = here(ours, "backup", "--json", GONE=gone)
    assert ended.returncode == 4
    assert len(list(ours.backups.glob("backup_tiny_*.json"))) == 1
    assert "backup_tiny_" in ended.stdout
    json.loads(ended.stdout)


def test_one_database_that_fails_does_not_keep_the_next_from_being_backed_up(
    here: Here, ours: Terminal, tiny: str
) -> None:
    (ours.folder / "backup.toml").write_text('[databases.people]\nurl_env = "PEOPLE"\n')
    ended = here(ours, "backup", DATABASE_URL=tiny.replace("/tiny", "/gone"), PEOPLE=tiny)
    assert ended.returncode == 4
    assert "/gone" in ended.stderr or "gone on" in ended.stderr
    assert len(list(ours.backups.glob("backup_people_*.json"))) == 1


def test_verify_without_a_name_verifies_the_latest_of_each_database(
    here: Here, ours: Terminal, tiny: str
) -> None:
    (ours.folder / "backup.toml").write_text('[databases.people]\nurl_env = "PEOPLE"\n')
    assert here(ours, "backup", PEOPLE=tiny).returncode == 0
    assert here(ours, "backup", PEOPLE=tiny).returncode == 0
    checked = here(ours, "verify", PEOPLE=tiny)
    assert checked.returncode == 0
    newest = [max(ours.backups.glob(f"backup_{name}_*.sql.gz.gpg")) for name in ("people", "tiny")]
    assert all(str(path).replace("globals.", "") in checked.stdout for path in newest)
    assert checked.stdout.count("good ") == 2


def test_it_runs_with_stdin_closed_and_no_terminal(ours: Terminal) -> None:
    """As cron and systemd run it; a process of its own, since ours has a stdin."""
    ended = subprocess.run(
        ["bash", "-c", 'exec "$0" -m backup_dag.cli backup <&-', sys.executable],
        cwd=ours.folder,
        env=ours.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "\x1b" not in ended.stdout + ended.stderr
    assert "backup_tiny_" in ended.stdout


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-", "<&- 2>&-"])
def test_it_runs_with_whatever_is_closed_and_writes_into_no_backup(ours: Terminal, closed: str) -> None:
    command = f'exec "$0" -m backup_dag.cli "$@" {closed}'
    for words in (["backup", "--json"], ["verify", "--json"]):
        ended = subprocess.run(
            ["bash", "-c", command, sys.executable, *words],
            cwd=ours.folder,
            env=ours.environment,
            stdout=subprocess.PIPE,
            check=False,
        )
        assert ended.returncode == 0
        assert ">&-" in closed.split("2")[0] or json.loads(ended.stdout)


def test_a_signal_that_comes_when_it_is_over_changes_nothing(ours: Terminal, made: Made) -> None:
    late = "import atexit, os, signal, sys; atexit.register(os.kill, os.getpid(), signal.SIGTERM);"
    late += "from backup_dag.cli.main import main; sys.argv = ['backup-dag', 'list']; main()"
    ended = subprocess.run(
        [sys.executable, "-c", late], cwd=ours.folder, env=ours.environment, capture_output=True, text=True
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False)
    assert str(made.id) in ended.stdout


def test_a_reader_that_goes_away_early_is_no_traceback(ours: Terminal, made: Made) -> None:
    """As in `backup-dag list | head -0`."""
    ended = subprocess.run(
        ["bash", "-c", '"$0" -m backup_dag.cli list --json | true', sys.executable],
        cwd=ours.folder,
        env=ours.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in ended.stderr


# list


def test_list_tells_the_copies_of_both_stores_or_of_the_one_it_can_see(
    here: Here, at_bucket: Terminal, tmp_path: Path
) -> None:
    assert here(at_bucket, "backup").returncode == 0
    elsewhere, both = str(tmp_path / "elsewhere"), ["local", "s3"]
    assert stores_listed(here(at_bucket, "list", "--json")) == [both]
    assert stores_listed(here(at_bucket, "list", "--json", BACKUP_DIR=elsewhere)) == [["s3"]]
    assert stores_listed(here(at_bucket, "list", "--json", AWS_S3_BUCKET="")) == [["local"]]
    [row] = [line for line in here(at_bucket, "list").stdout.splitlines() if "backup_tiny_" in line]
    assert "local s3" in row
    assert row.split()[-1] == "never"


def stores_listed(ended: "subprocess.CompletedProcess[str]") -> list[list[str]]:
    assert ended.returncode == 0, ended.stderr
    return [[copy["store"] for copy in backup["copies"]] for backup in json.loads(ended.stdout)["backups"]]


def test_list_is_newest_first_and_comes_in_pages(here: Here, ours: Terminal) -> None:
    for _ in range(3):
        assert here(ours, "backup").returncode == 0
    pages = [json.loads(here(ours, "list", "--json", "--limit", "2", "--page", p).stdout) for p in "12"]
    ids = [backup["backup"] for page in pages for backup in page["backups"]]
    assert [len(page["backups"]) for page in pages] == [2, 1]
    assert ids == sorted(ids, reverse=True)
    assert len(set(ids)) == 3
    assert {page["total"] for page in pages} == {3}
    assert "1 older ones: backup-dag list --page 2" in here(ours, "list", "--limit", "2").stderr


def test_an_empty_list_says_where_it_looked(here: Here, ours: Terminal) -> None:
    ended = here(ours, "list")
    assert ended.returncode == 0
    assert f"no backups in {ours.backups}" in ended.stderr


def test_strays_are_named_and_left_alone(made: Made) -> None:
    notes = made.terminal.backups / "notes.txt"
    orphan = made.terminal.backups / "backup_tiny_20260101_020000.sql.gz.gpg"
    notes.write_text("mine")
    orphan.write_text("from a run that died")
    ended = made.run("list")
    assert ended.returncode == 0
    assert f"left alone: {notes} (not a backup's name)" in ended.stderr
    assert f"left alone: {orphan} (no manifest" in ended.stderr
    assert ended.stdout.count("backup_tiny_") == 1
    assert made.run("backup").returncode == 0
    assert (notes.read_text(), orphan.read_text()) == ("mine", "from a run that died")


def test_list_says_why_it_knows_no_passphrase(made: Made) -> None:
    """And not that today's were an older one."""
    listed = made.run("list", BACKUP_ENCRYPTION_KEY_FILE="/nowhere")
    assert listed.returncode == 0, listed.stderr
    assert "warning: what is set here opens no copy" in listed.stderr
    assert "are both set" in listed.stderr


def test_list_keeps_to_one_database(here: Here, made: Made, sample: str) -> None:
    assert here(made.terminal, "backup", DATABASE_URL=sample).returncode == 0
    both = json.loads(made.run("list", "--json").stdout)["backups"]
    only = json.loads(made.run("list", "--database", "tiny", "--json").stdout)["backups"]
    assert [backup["backup"] for backup in only] == [made.id]
    assert len(both) == 2


def test_a_manifest_that_cannot_be_read_is_told_and_the_rest_is_listed(made: Made) -> None:
    assert made.run("backup").returncode == 0
    made.file("json").write_text("{")
    ended = made.run("list")
    assert ended.returncode == 0
    assert "manifest cannot be read" in ended.stdout
    assert f"cannot be used: {made.file('json')}" in ended.stderr
    assert ended.stdout.count("backup_tiny_") == 2


# verify


@pytest.mark.parametrize("level", ["checksum", "content"])
def test_a_good_backup_verifies_and_the_list_says_so(made: Made, level: str) -> None:
    ended = made.run("verify", "--level", level)
    assert ended.returncode == 0, ended.stderr
    assert f"good  {made.artifact}" in ended.stdout
    assert made.recorded()[level]["faults"] == []
    assert f"local: {level}, " in made.run("list").stdout


def flip(path: Path, at: int = 200) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change_digest(made: Made) -> None:
    changed = json.loads(made.file("json").read_text())
    changed["content"]["tables"]["public.people"]["sha256"] = "0" * 64
    made.file("json").write_text(json.dumps(with_mac(changed)))


DAMAGES: dict[str, tuple[Callable[[Made], None], list[str]]] = {
    "a flipped byte": (lambda made: flip(made.artifact), ["checksum", "content"]),
    "a flipped last byte": (lambda made: flip(made.artifact, -1), ["checksum", "content"]),
    "a byte too few": (lambda made: truncate(made.artifact), ["checksum", "content"]),
    "no artifact": (lambda made: made.artifact.unlink(), ["checksum", "content"]),
    "a digest changed in the manifest": (change_digest, ["content"]),
    "changed globals": (lambda made: flip(made.file("globals.sql.gz.gpg"), 90), ["checksum", "content"]),
    "no .sha256": (lambda made: made.file("sha256").unlink(), ["checksum", "content"]),
    "a changed .sha256": (lambda made: flip(made.file("sha256"), 0), ["checksum", "content"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_recorded_and_listed(made: Made, damage: str) -> None:
    harm, levels = DAMAGES[damage]
    harm(made)
    for level in levels:
        ended = made.run("verify", made.id, "--level", level)
        assert ended.returncode == 6, (level, ended.stderr)
        assert "BAD" in ended.stdout
        assert str(made.artifact) in ended.stderr
        [fault] = made.recorded()[level]["faults"]
        assert fault in ended.stdout
    assert "FAILED" in made.run("list").stdout


@pytest.mark.parametrize("level", ["checksum", "content"])
@pytest.mark.parametrize("ending", ["sql.gz.gpg", "globals.sql.gz.gpg"])
def test_the_fault_names_the_file_that_is_damaged(made: Made, ending: str, level: str) -> None:
    flip(made.file(ending), -1)
    made.run("verify", "--level", level)
    [fault] = made.recorded()[level]["faults"]
    assert str(made.file(ending)) in fault
    assert "keybox" not in fault  # gpg's chatter is not ours to repeat


def test_the_changed_table_is_named(made: Made) -> None:
    change_digest(made)
    assert "public.people has other content" in made.run("verify").stdout


def test_the_latest_backup_is_verified_even_where_it_is_plainly_broken(made: Made) -> None:
    """Not an older one in its place: that would pass, and the night's backup is lost all the same."""
    newer = made.run("backup", "--json")
    name = json.loads(newer.stdout)[0]["manifest"]["artifact"]["name"]
    truncate(made.terminal.backups / name)
    ended = made.run("verify", "--level", "checksum")
    assert ended.returncode == 6, ended.stdout
    assert name in ended.stderr


def test_a_digest_of_the_whole_that_was_changed_is_found(made: Made) -> None:
    changed = json.loads(made.file("json").read_text())
    changed["content"]["sha256"] = "0" * 64
    made.file("json").write_text(json.dumps(with_mac(changed)))
    assert made.run("verify").returncode == 6


def test_the_good_copy_is_told_from_the_bad_one(here: Here, at_bucket: Terminal) -> None:
    assert here(at_bucket, "backup").returncode == 0
    [artifact] = at_bucket.backups.glob("backup_tiny_*[0-9].sql.gz.gpg")
    flip(artifact)
    ended = here(at_bucket, "verify", "--level", "checksum")
    assert ended.returncode == 6
    assert f"BAD   {artifact}" in ended.stdout
    assert f"good  s3://{at_bucket.environment['AWS_S3_BUCKET']}/{artifact.name}" in ended.stdout
    listed = here(at_bucket, "list").stdout
    assert "local: checksum FAILED" in listed
    assert "s3: checksum, " in listed


def test_a_check_that_passes_after_one_that_failed_replaces_it(made: Made) -> None:
    flip(made.artifact)
    assert made.run("verify").returncode == 6
    flip(made.artifact)
    assert made.run("verify").returncode == 0
    assert "FAILED" not in made.run("list").stdout


def test_a_failed_checksum_is_not_hidden_by_an_older_passed_content_check(made: Made) -> None:
    assert made.run("verify", "--level", "content").returncode == 0
    flip(made.artifact)
    assert made.run("verify", "--level", "checksum").returncode == 6
    assert "FAILED" in made.run("list").stdout


def test_a_backup_is_found_by_id_by_path_and_by_address(here: Here, at_bucket: Terminal) -> None:
    assert here(at_bucket, "backup").returncode == 0
    [manifest] = at_bucket.backups.glob("*.json")
    stem, bucket = manifest.stem, at_bucket.environment["AWS_S3_BUCKET"]
    local, remote = [str(at_bucket.backups / f"{stem}.sql.gz.gpg")], [f"s3://{bucket}/{stem}.sql.gz.gpg"]
    meant = {
        stem: local + remote,
        "latest": local + remote,
        str(manifest): local,
        str(at_bucket.backups / f"{stem}.sql.gz.gpg"): local,
        f"backups/{stem}": local,
        f"s3://{bucket}/{stem}.json": remote,
        f"s3://{bucket}/{stem}": remote,
    }
    for reference, addresses in meant.items():
        ended = here(at_bucket, "verify", reference, "--level", "checksum", "--json")
        found = [Path(c["address"]).name and c["address"] for c in json.loads(ended.stdout)]
        assert found == [
            a.replace(f"{at_bucket.folder}/", "") if reference.startswith("backups/") else a
            for a in addresses
        ]


def test_the_checksum_level_needs_no_key_and_no_database(made: Made) -> None:
    ended = made.run("verify", "--level", "checksum", BACKUP_ENCRYPTION_KEY="", DATABASE_URL="")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("key", ["", "another passphrase"])
def test_without_its_key_content_is_not_judged(made: Made, key: str) -> None:
    ended = made.run("verify", "--level", "content", BACKUP_ENCRYPTION_KEY=key)
    assert ended.returncode == 3, ended.stderr
    assert made.manifest["encryption"]["key_fingerprints"][0] in ended.stderr
    assert "BACKUP_ENCRYPTION_KEY" in ended.stderr
    assert key not in ended.stderr or not key
    assert not made.file("verify.json").exists()
    assert "never" in made.run("list").stdout


def test_a_backup_can_be_verified_where_it_cannot_be_written_to(made: Made, tmp_path: Path) -> None:
    """From a copied folder, by its path: the check runs there, and the original gets no record."""
    copytree(made.terminal.backups, tmp_path / "copied")
    ended = made.run("verify", str(tmp_path / "copied" / f"{made.id}.json"))
    assert ended.returncode == 0, ended.stderr
    assert not made.file("verify.json").exists()


# what a backup says of itself


def test_a_backup_for_yesterday_is_marked_late_everywhere(here: Here, ours: Terminal) -> None:
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
    ended = here(ours, "backup", "--partition", yesterday)
    assert ended.returncode == 0, ended.stderr
    assert f"late: this holds the state of now, and not that of {yesterday}" in ended.stderr
    assert f"(late, counts for {yesterday})" in ended.stdout
    [path] = ours.backups.glob("*.json")
    manifest = json.loads(path.read_text())
    assert (manifest["reason"], manifest["partition_day"]) == ("late", yesterday)
    assert manifest["snapshot_time"][:10] != yesterday
    [row] = [line for line in here(ours, "list").stdout.splitlines() if "backup_tiny_" in line]
    assert " late " in row


def test_a_backup_for_a_day_to_come_is_refused(here: Here, ours: Terminal) -> None:
    """It would pass for that day's state when the day has come."""
    tomorrow = (datetime.now(UTC) + timedelta(days=2)).date().isoformat()
    ended = here(ours, "backup", "--partition", tomorrow)
    assert ended.returncode in (2, 8), ended.stdout
    assert list(ours.backups.glob("*.json")) == []


def test_without_encryption_it_says_so_loudly_and_gunzip_reads_it(here: Here, ours: Terminal) -> None:
    ended = here(ours, "backup", BACKUP_ENCRYPTION="off", BACKUP_ENCRYPTION_KEY="")
    assert ended.returncode == 0, ended.stderr
    assert "WARNING: BACKUP_ENCRYPTION=off" in ended.stderr
    [artifact] = ours.backups.glob("*[0-9].sql.gz")
    text = decompress(artifact.read_bytes())
    assert b"person 50" in text
    assert text.rstrip().splitlines()[-1].startswith(b"\\unrestrict") or b"dump complete" in text
    gunzipped = subprocess.run(["gunzip", "-c", artifact], capture_output=True, check=True).stdout
    assert gunzipped == text


def test_no_encrypted_file_holds_plain_text_and_all_are_ours_alone(made: Made) -> None:
    files = [path for path in made.terminal.backups.iterdir() if path.is_file()]
    assert [path for path in files if b"person 50" in path.read_bytes()] == []
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert made.terminal.backups.stat().st_mode & 0o077 == 0


def test_a_manifest_holds_no_secret(made: Made) -> None:
    text = made.file("json").read_text()
    assert KEY not in text
    assert "person 50" not in text


def test_several_databases_each_by_its_own_plan(here: Here, ours: Terminal, tiny: str, sample: str) -> None:
    (ours.folder / "backup.toml").write_text(
        '[databases.without]\nurl_env = "TINY"\nexclude_tables = ["public.sessions"]\n'
        '[databases.hollow]\nurl_env = "TINY"\nexclude_table_data = ["public.sessions"]\nformat = "custom"\n'
        '[databases.part]\nurl_env = "SAMPLE"\ninclude_schemas = [\'"Weird Names"\']\n'
        'exclude_tables = ["*.empty"]\n'
    )
    ended = here(ours, "backup", "--json", DATABASE_URL="", TINY=tiny, SAMPLE=sample)
    assert ended.returncode == 0, ended.stderr
    made = {each["manifest"]["database"]: each["manifest"] for each in json.loads(ended.stdout)}
    assert rows(made["without"]) == {"public.people": 50}
    assert rows(made["hollow"]) == {"public.people": 50}
    assert made["hollow"]["artifact"]["name"].endswith(".dump.gz.gpg")
    assert rows(made["part"])['"Weird Names"."Größe"'] == 100
    assert {name.split(".")[0] for name in rows(made["part"])} == {'"Weird Names"'}
    assert '"Weird Names".empty' not in rows(made["part"])
    for name in made:
        assert here(ours, "verify", "--database", name, DATABASE_URL="").returncode == 0


def rows(manifest: Mapping[str, Any]) -> dict[str, int]:
    return {name: table["rows"] for name, table in manifest["content"]["tables"].items()}


def test_one_of_several_databases_can_be_chosen(here: Here, ours: Terminal, tiny: str) -> None:
    (ours.folder / "backup.toml").write_text('[databases.other]\nurl_env = "TINY"\n')
    ended = here(ours, "backup", "--database", "other", TINY=tiny)
    assert ended.returncode == 0, ended.stderr
    assert [path.name[:13] for path in ours.backups.glob("*.json")] == ["backup_other_"]


def test_settings_may_stand_in_a_file(here: Here, ours: Terminal, tiny: str) -> None:
    names = ("DATABASE_URL", "BACKUP_DIR", "BACKUP_ENCRYPTION_KEY", "PG_BIN_DIR")
    lines = [f"{name}='{ours.environment.pop(name)}'" for name in names]
    (ours.folder / ".env").write_text("\n".join(lines))
    ended = here(ours, "backup")
    assert ended.returncode == 0, ended.stderr
    assert len(list(ours.backups.glob("*.json"))) == 1
    assert "DATABASE_URL" not in os.environ
