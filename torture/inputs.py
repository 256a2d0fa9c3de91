"""Hostile input: whatever stands in a manifest, a dump, a file of roles or notes, a setting or a name.

Somebody else may have written any of these, or a disk may have spoilt it. So each reader is handed texts
made to hurt, and may answer with what it read or with one of our errors, within two seconds of processor
time and little memory; a verb besides prints nothing that would move the cursor, and with --json one
document that any parser takes. hypothesis makes the texts from seeds and from words that have hurt somebody
before. Where atheris is installed (it has wheels for some Pythons only: `pip install atheris`), `python -m
torture.inputs KIND` lets coverage lead instead. What was found is kept in tests/corpus/<kind>/, and tried in
every test run.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given
from hypothesis import seed as seeded
from hypothesis import settings as how
from hypothesis import strategies as st
from pydantic import SecretStr

import backup_dag.cli.main  # noqa: F401
from backup_dag.cli.group import cli
from backup_dag.core.address import Address
from backup_dag.core.authenticity import canonical, check
from backup_dag.core.catalog import find
from backup_dag.core.copies import Copy
from backup_dag.core.databases import told_apart, whole_database
from backup_dag.core.errors import BackupDagError, IntegrityError
from backup_dag.core.manifest import BackupId, owner_of, read_manifest
from backup_dag.core.restoring.confirmation import check_code
from backup_dag.core.restoring.noted import Noted
from backup_dag.core.restoring.roles import roles_in
from backup_dag.core.settings import Settings, load
from backup_dag.core.stages.compression import decompressing
from backup_dag.core.stages.dump import PROPERTIES
from backup_dag.core.store.local import LocalStore
from backup_dag.core.stream import Hashing
from tests.authentic import with_mac
from tests.cleaning import checked
from tests.core.made import lay_out, manifest
from torture.tally import Tally

Target = Callable[[bytes], None]

SECONDS = 2.0  # of processor time, for up to a megabyte of input
MEMORY = 600 << 20  # bytes that any one input may add
LARGEST = 1_000_000  # bytes of input
_MOST_OF_SETTINGS = 50_000  # bytes: these files are the user's own, and read several times
PASSPHRASE = "correct horse battery staple 42"
CORPUS = Path(__file__).parents[1] / "tests" / "corpus"
VERBS = (
    ("list",),
    ("list", "--json"),
    ("status", "--json"),
    ("watch", "--json"),
    ("metrics",),
    ("cleanup", "--dry-run", "--json"),
)
_GOOD = manifest()
_MANIFEST = _GOOD.id.file("json")
_VERIFIED = _GOOD.id.file("verify.json")
_HELD = _GOOD.id.file("hold-1-1.json")


class TooLong(BaseException):
    """It did not end in time. No `except Exception` of what is tried may catch it."""


@dataclass(frozen=True)
class Kind:
    """A reader, texts that it takes, and words that are put into them."""

    target: Target
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]


def inputs(seed: int, examples: int = 300, one_in: int = 4) -> Tally:
    """So many texts for each reader; and one in so many of those that have a word in the place of a value."""
    found, tried = list[str](), 0
    with kinds() as all_kinds:
        for name, kind in all_kinds.items():
            for wrong, count in (tortured(kind, seed, examples), swept(kind, seed, one_in)):
                tried += count
                found += [f"{name}: {each}" for each in wrong]
    return Tally("input", tried, tried - len(found), tuple(found))


def swept(kind: Kind, seed: int, one_in: int) -> tuple[list[str], int]:
    """What a reader did wrong with a word in the place of a value; and how many texts it was given."""
    spots = [
        (text, spot.span(), word)
        for text in kind.seeds
        for spot in _VALUE.finditer(text)
        for word in kind.words
    ]
    chosen = random.Random(seed).sample(spots, len(spots) // one_in)
    wrong = []
    for text, (begin, end), word in chosen:
        spoilt = text[:begin] + word + text[end:]
        if said := fault(kind.target, spoilt):
            wrong.append(f"{said}: {shown(text[max(0, begin - 40) : begin])} then {shown(word)}")
    return wrong, len(chosen)


def tortured(kind: Kind, seed: int, examples: int) -> tuple[list[str], int]:
    """What a reader did wrong with the texts of that seed, at its smallest; and how many it was given."""
    count, wrong = 0, dict[bytes, str]()

    @seeded(seed)
    @how(
        max_examples=examples,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(texts(kind))
    def given_one(text: bytes) -> None:
        nonlocal count
        count += 1
        if said := fault(kind.target, text):
            wrong[text] = said
            raise AssertionError(said)

    with suppress(AssertionError):
        given_one()
    if not wrong:
        return [], count
    smallest = min(wrong, key=len)
    return [f"{wrong[smallest]}: seed {seed}, {shown(smallest)}"], count


def shown(text: bytes) -> str:
    """A text as Python would write it; of a long one both ends."""
    return repr(text) if len(text) < 400 else f"{text[:200]!r} … {text[-200:]!r} ({len(text):,} bytes)"


def fault(target: Target, text: bytes) -> str:
    """What is wrong with what a reader did with a text, in words; "" where nothing is."""
    before = _peak()
    try:
        with _in_time():
            target(text)
    except BackupDagError as error:
        return "" if len(str(error)) < 20_000 else f"a message of {len(str(error)):,} characters"
    except TooLong:
        return f"more than {SECONDS} s"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    grown = _peak() - before
    return f"{grown >> 20} MB of memory" if grown > MEMORY else ""


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextmanager
def _in_time() -> Iterator[None]:
    """Raises TooLong where the block takes more of the processor than it may, whoever else uses it."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# -- the texts


def texts(kind: Kind) -> st.SearchStrategy[bytes]:
    """Seeds with words put into them, once or as often as they fit, or in a value's place; and mere bytes."""
    edit = st.tuples(
        st.integers(0, 1 << 16),
        st.sampled_from(kind.words) if kind.words else st.binary(max_size=8),
        st.sampled_from((1, 1, 1, 2, 60, LARGEST)),
        st.booleans(),
    )
    spoilt = st.builds(_spoilt, st.sampled_from(kind.seeds), st.lists(edit, min_size=1, max_size=3))
    return st.one_of(spoilt, spoilt, spoilt, st.binary(max_size=3000))


_VALUE = re.compile(rb'(?<=[:=] )(?:"(?:[^"\\]|\\.)*+"|[-+0-9.eE]++|true|false|null)|(?<==)[^\s,]++')


def _spoilt(seed: bytes, edits: list[tuple[int, bytes, int, bool]]) -> bytes:
    for at, word, times, instead in edits:
        begin = end = at % (len(seed) + 1)
        values = list(_VALUE.finditer(seed)) if instead and len(seed) < 20_000 else []
        if values:
            begin, end = values[at % len(values)].span()
        many = min(times, LARGEST // (len(word) + 1))
        seed = (seed[:begin] + word * many + seed[end:])[: LARGEST + 1000]
    return seed


_DEEP = 100_000
JSON = (
    *(b"NaN", b"Infinity", b"-Infinity", b"-1", b"1e400", b"1e308", b"-0.0", b"true", b"null", b"[]", b"{}"),
    *(b"9" * 19, b"9" * 400, b"9" * 4299, b"9" * 5000),
    *(
        b'""',
        b'"\\ud800"',
        b'"\\u0000"',
        b'"\\u001b[31mRED"',
        b'"\\u202e"',
        b'"../../etc/passwd"',
        b'"/etc/passwd"',
    ),
    *(b'"0001-01-01"', b'"9999-12-31"', b'"0001-01-01T00:00:00+14:00"', b'"9999-12-31T23:59:59-14:00"'),
    *(
        b'"2026-01-01T00:00:00"',
        b'"99"',
        b'"\xd9\xa3"',
        b'"' + b"9" * 5000 + b'"',
        b'"' + b"x" * 100_000 + b'"',
    ),
    *(b"[" * _DEEP, b"[" * _DEEP + b"]" * _DEEP, b'{"a":' * _DEEP, b"[[]]", b'{"a": 1, "a": 2}'),
    *(b"\xef\xbb\xbf", b"\0", b"\xff", b"\xed\xa0\x80", b"\n", b" "),
)
SQL = (
    *(
        b"'",
        b"''",
        b'"',
        b'""',
        b"$",
        b"$$",
        b"$a$",
        b";",
        b"\\",
        b"\\\\",
        b"--",
        b"-- ",
        b"\n",
        b"(",
        b",",
        b"a",
    ),
    *(b"\\.\n", b"\\restrict a\n", b"COPY ", b'COPY "a" (', b"COPY a FROM stdin;\n", b"CREATE ROLE a\n"),
    *(b"CREATE ROLE a;\n", b"GRANT a TO b;\n", b"ALTER ROLE a WITH ", b"ALTER ROLE a SET b TO '", b"WITH A "),
    *(
        b"\n-- Name: ",
        b"\n-- Data for Name: ",
        b"; Type: ",
        b"; Type: A; Schema: ",
        b"; Schema: ",
        b"; Owner: ",
    ),
    *(b"; Type: SEQUENCE SET; Schema: ", b"SELECT pg_catalog.setval('", b"', 1, true);\n", b"', 9, false"),
    *(
        b"SELECT pg_catalog.lo_open('",
        b"SELECT pg_catalog.lo_open('1', 2);\n",
        b"\xff",
        b"\0",
        b"\xef\xbb\xbf",
    ),
    *(
        PROPERTIES.encode(),
        b"SELECT ",
        b"\n\\gexec\n",
        b" WHERE EXISTS (SELECT FROM pg_database",
        b" GRANTED BY ",
    ),
)
NAMES = (
    *(
        b"..",
        b"/",
        b"\\",
        b"\0",
        b"\n",
        b"\r",
        b"\x1b[31m",
        b".json",
        b"latest",
        b"s3://",
        b"s3:///",
        b" ",
        b"~",
    ),
    *(b"backup_", b"_20260230_000000", b"_00010101_000000", b"_99991231_235959", b"\xff", b"\xd9\xa3", b"a"),
    *(b"%00", b"%2e%2e", b"'", b'"', b"=", b"?", b"@", b"#", b":", b"postgresql://", b"host=", b" dbname="),
)
SETTINGS = (
    *(
        b"=",
        b"\n",
        b"'",
        b'"',
        b"${",
        b"}",
        b"${A:-",
        b"#",
        b"\\",
        b"\0",
        b"\xef\xbb\xbf",
        b"\xff",
        b"\r\n",
        b"export ",
    ),
    *(
        b"9" * 5000,
        b"-1",
        b"NaN",
        b"1e400",
        b"99999999999d",
        b"24:00",
        b"0001-01-01",
        b"9999-12-31",
        b",",
        b"/",
    ),
    *(
        b"[" * 5000,
        b"{" * 5000,
        b"a.",
        b"[a]\n",
        b"[[a]]\n",
        b"[databases.a]\n",
        b"'''",
        b'"""',
        b"../../etc/passwd",
    ),
)


# -- the readers


@contextmanager
def kinds() -> Iterator[dict[str, Kind]]:
    """Every reader, each with a folder of its own, and an environment that has no settings but ours."""
    with tempfile.TemporaryDirectory(prefix="inputs-") as folder, _bare_environment(Path(folder)):
        yield _kinds(_Ground(Path(folder)))


@contextmanager
def _bare_environment(folder: Path) -> Iterator[None]:
    before, home = dict(os.environ), Path.cwd()
    for name in list(os.environ):
        if name.startswith(("AWS_", "BACKUP_", "DATABASE_", "PG")):
            del os.environ[name]
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(home)
        os.environ.clear()
        os.environ.update(before)


def _kinds(ground: _Ground) -> dict[str, Kind]:
    document = _GOOD.to_json().encode()
    signed = json.dumps(with_mac(json.loads(document), PASSPHRASE), indent=1).encode()
    check = checked(_GOOD, "content").encode()
    record = {
        "time": "2026-03-14T12:00:00+00:00",
        "what": "drill",
        "database": "orders",
        "backup": str(_GOOD.id),
    }
    drilled = {**record, "seconds": {"fetch": 1.0, "load": 2.0}, "dump_bytes": 3, "store": "s3", "faults": []}
    entry = {**record, "outcome": "done", "message": "", "seconds": 1.0, "run": None, "details": {"a": 1}}
    seen = {"first": "2026-03-14T12:00:00Z", "happened": "a", "database": "orders", "may_end": True}
    alert = {"kind": "failed", "database": "orders", "happened": "a", "since": "2026-03-14T12:00:00Z"}
    state = {"seen": {"overdue/orders/": seen}, "waiting": [{"alert": alert, "told": [], "reason": ""}]}
    usual = {"usual": {"orders": {"rows": 3}}, "accepted": {"orders": {"bytes of dump": 5}}}
    hold = {"host": "a", "since": "2026-03-14T12:00:00+00:00", "until": "2026-03-16T12:00:00+00:00"}

    def noted(name: str, *said: Any) -> Kind:
        lines = b"".join(json.dumps(each).encode() + b"\n" for each in said)
        return Kind(lambda text: ground.verbs_with(name, text), (lines,), JSON)

    return {
        "manifest": Kind(ground.manifest, (document, signed), JSON),
        "manifest in a store": Kind(
            lambda text: ground.verbs_with(_MANIFEST, text), (document, signed), JSON
        ),
        "check": Kind(lambda text: ground.verbs_with(_VERIFIED, text), (check,), JSON),
        "hold": noted(_HELD, hold),
        "audit": noted(".audit/audit.jsonl", entry),
        "audit sent": noted(".audit/sent", {"file": 1, "bytes": 2}),
        "restores": noted(".restores.jsonl", drilled),
        "told": noted(".watch.json", state),
        "usual": noted(".usual.json", usual),
        "name": Kind(
            ground.name,
            (str(_GOOD.id).encode(), _MANIFEST.encode(), b"s3://b/p/" + str(_GOOD.id).encode()),
            NAMES,
        ),
        "address": Kind(ground.address, (b"postgresql://u:p@h:5432/orders", b"host=h dbname=orders"), NAMES),
        "code": Kind(ground.code, (b"AAAABBBB-CCCCDDDD-EEEEFFFF",), NAMES),
        "dump": Kind(ground.dump, (_DUMP,), SQL),
        "roles": Kind(ground.roles, (_ROLES,), SQL),
        "gzip": Kind(ground.gzip, (_GZIP,), (b"\0", b"\xff", _GZIP)),
        "settings": Kind(ground.env, (_ENV,), SETTINGS),
        "databases": Kind(ground.toml, (_TOML,), SETTINGS),
    }


class _Ground:
    """A folder with one backup in it, which every text is put beside, or in place of."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "backups"
        lay_out(self.store, _GOOD)
        self.settings = Settings.model_construct(
            **{
                **{name: field.default for name, field in Settings.model_fields.items()},
                "backup_dir": self.store,
                "backup_encryption_key": SecretStr(PASSPHRASE),
            }
        )

    def manifest(self, text: bytes) -> None:
        """As a catalog reads it, and as its authenticity is asked for, whatever is accepted here."""
        read = read_manifest(text, _MANIFEST)
        assert json.loads(read.to_json(), parse_constant=_refused)
        assert all(owner_of(name) == _GOOD.id and "/" not in name for name in read.names)
        copy = Copy(LocalStore(self.store), read, None, document=text)
        for accepted in ("on", "off"):
            chosen = self.settings.model_copy(update={"backup_accept_unauthenticated": accepted})
            with suppress(BackupDagError):
                if check(chosen, copy) is not None:
                    assert canonical(text)

    def verbs_with(self, name: str, text: bytes) -> None:
        """Every verb that only looks, with that file in BACKUP_DIR; it is as before afterwards."""
        path = self.store / name
        path.parent.mkdir(exist_ok=True)
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(text)
        try:
            for verb in VERBS:
                self._look(*verb)
        finally:
            path.unlink(missing_ok=True) if before is None else path.write_bytes(before)
            for left in (".watch.json", ".usual.json", ".watch.new"):
                (self.store / left).unlink(missing_ok=True)

    def _look(self, *words: str) -> None:
        os.environ.update(
            DATABASE_URL="postgresql://u@127.0.0.1:1/orders",
            BACKUP_DIR=str(self.store),
            BACKUP_ENCRYPTION_KEY=PASSPHRASE,
        )
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), suppress(BackupDagError):
            cli.main(list(words), standalone_mode=False)
        for said in (out.getvalue(), err.getvalue()):
            said.encode()  # as a terminal would
            assert all(each.isprintable() or each in "\n\t" for each in said), f"{words} moves the cursor"
        if "--json" in words:
            json.loads(out.getvalue() or "{}", parse_constant=_refused)

    def name(self, text: bytes) -> None:
        """An id, a file's name or a reference, as one that is typed or listed."""
        said = os.fsdecode(text)
        for found in (BackupId.parse(said), owner_of(said)):
            if found is not None:
                assert BackupId.parse(str(found)) == found
                assert re.fullmatch(r"backup_[A-Za-z0-9_]+_\d{8}_\d{6}", str(found), re.ASCII)
        if "s3://" not in said or "s3:///" in said:  # a bucket's name would be asked for
            with suppress(BackupDagError):
                find(self.settings, said)

    def address(self, text: bytes) -> None:
        """A url: whatever database it names, files of its backups lie where they should."""
        address = Address.of(os.fsdecode(text))
        like = told_apart(self._with_database(), None)[0][0]
        name = whole_database(like, address).name
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]{0,62}", name, re.ASCII), name
        assert BackupId.parse(f"backup_{name}_20260101_000000")
        assert address.for_argv()
        assert str(address)

    def _with_database(self) -> Settings:
        url = SecretStr("postgresql://u@127.0.0.1:1/orders")
        return self.settings.model_copy(update={"database_url": url, "backup_config": Path(os.devnull)})

    def code(self, text: bytes) -> None:
        check_code(self.store, os.fsdecode(text), what="a", state="b")

    def dump(self, text: bytes) -> None:
        """Read in one block, and cut in three: what is found must be the same."""
        third = len(text) // 3
        found = [
            _content(*blocks)
            for blocks in ((text,), (text[:third], text[third : 2 * third], text[2 * third :]))
        ]
        assert found[0] == found[1], "what is found depends on where blocks are cut"

    def roles(self, text: bytes) -> None:
        roles = roles_in(text, "globals")
        for superuser in (True, False):
            for statement in roles.making(roles.names, superuser=superuser):
                assert statement.endswith(";")

    def gzip(self, text: bytes) -> None:
        with decompressing(Hashing()) as writer:
            writer.write(text)

    def env(self, text: bytes) -> None:
        path = self.folder / "settings.env"
        path.write_bytes(text[:_MOST_OF_SETTINGS])
        before = dict(os.environ)
        for name in list(os.environ):
            if name.startswith(("AWS_", "BACKUP_", "DATABASE_")):
                del os.environ[name]
        try:
            found = load(path)
            with suppress(BackupDagError):
                found.passphrase()
            for each in (found.zone, found.backup_dir, repr(found)):
                assert each is not None
            told_apart(found, path)
        finally:
            os.environ.clear()
            os.environ.update(before)

    def toml(self, text: bytes) -> None:
        path = self.folder / "backup.toml"
        path.write_bytes(text[:_MOST_OF_SETTINGS])
        told_apart(self._with_database().model_copy(update={"backup_config": path}), None)


def _content(*blocks: bytes) -> object:
    """What a dump's text is found to hold, and which objects; or that it ends too early."""
    noted = Noted()
    fingerprint = noted.fingerprint()
    for block in blocks:
        fingerprint.write(block)
    entries = noted.schema.entries()
    try:
        return fingerprint.finish(), entries
    except IntegrityError:
        return None


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_DUMP = b"""--
-- PostgreSQL database dump
--

\\restrict abc

-- Dumped from database version 18.4
-- Dumped by pg_dump version 18.4

SET client_encoding = 'UTF8';

--
-- Name: f(integer); Type: FUNCTION; Schema: public; Owner: postgres
--

CREATE FUNCTION public.f(n integer) RETURNS text LANGUAGE sql AS $_$ SELECT 'it''s' $_$;

--
-- Name: t; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE public.t (
    a integer CONSTRAINT "t a" NOT NULL,
    b text
);

--
-- Data for Name: t; Type: TABLE DATA; Schema: public; Owner: postgres
--

COPY public.t (a, b) FROM stdin;
1\tx
\\.

--
-- Name: s; Type: SEQUENCE SET; Schema: public; Owner: postgres
--

SELECT pg_catalog.setval('public.s', 90, true);

--
-- Data for Name: 1; Type: BLOBS; Schema: -; Owner: postgres
--

SELECT pg_catalog.lo_open('1', 131072);
SELECT pg_catalog.lowrite(0, '\\x00ff');
SELECT pg_catalog.lo_close(0);

--
-- PostgreSQL database dump complete
--

\\unrestrict abc

"""
_ROLES = (
    b"""--
-- PostgreSQL database cluster dump
--

\\restrict abc

SET client_encoding = 'UTF8';

CREATE ROLE "a b";
ALTER ROLE "a b" WITH NOSUPERUSER INHERIT LOGIN CONNECTION LIMIT -1 PASSWORD 'SCRAM$x' VALID UNTIL 'infinity';
COMMENT ON ROLE "a b" IS 'it''s; mine';
ALTER ROLE "a b" SET "app.x" TO 'y';
GRANT "a b" TO c WITH INHERIT TRUE GRANTED BY postgres;

\\unrestrict abc

"""
    + PROPERTIES.encode()
    + b"""SET client_encoding = 'UTF8';
SELECT 'ALTER DATABASE "d" SET "a"."b" TO ''c''' WHERE EXISTS (SELECT FROM pg_database WHERE datname = 'd')
\\gexec
"""
)
_GZIP = bytes.fromhex("1f8b08000000000002034b4c4a06000c8d5f6003000000")
_ENV = b"""DATABASE_URL=postgresql://u:p@127.0.0.1:5432/orders
BACKUP_ENCRYPTION_KEY='Zk9x#pq7 9'
BACKUP_RPO=36h
BACKUP_TIME=02:00
BACKUP_QUIET_HOURS=22:00-06:00
BACKUP_TIMEZONE=Europe/Berlin
BACKUP_START_DATE=2026-01-01
BACKUP_RESTORE_JOBS=2
BACKUP_NOTIFY_EMAIL=a@example.org,b@example.org
BACKUP_S3_PREFIX=a/b
BACKUP_DIR=backups
AWS_DEFAULT_REGION=us-east-1
"""
_TOML = b"""[databases.orders]
url_env = "ORDERS_URL"
exclude_table_data = ["public.sessions"]
format = "custom"
compression_level = 3
"""
