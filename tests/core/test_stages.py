"""Compression and encryption, both ways: readable by the plain tools, and no damage goes unseen."""

import gzip
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from backup_dag.core.backup import order_for, take_backup
from backup_dag.core.clients import Clients
from backup_dag.core.errors import BackupDagError, ConfigurationError, IntegrityError
from backup_dag.core.key import Key, encryption_key
from backup_dag.core.settings import Settings
from backup_dag.core.stages.checksum import checksum_file, compare
from backup_dag.core.stages.compression import compressing, decompressing
from backup_dag.core.stages.dump import as_sql
from backup_dag.core.stages.encryption import decrypting, encrypting
from backup_dag.core.stream import BLOCK, Writer
from demo.servers import Postgres
from tests.conftest import KEY, database, make_database, run_sql
from tests.core.dumps import pg_dump
from tests.core.made import manifest, measured
from tests.store_contract import Gathered, Refusing, SinkFull

TEXT = b"".join(b"%d\tline %x\n" % (n, n * 2654435761 % 2**32) for n in range(40_000))
PASSPHRASE = Key("symmetric", KEY, fingerprints=("0123456789abcdef",))


def blocks(data: bytes, size: int = 300_000) -> Iterator[bytes]:
    yield from (data[at : at + size] for at in range(0, len(data), size))


def push(stage: AbstractContextManager[Writer], data: bytes, then: BaseException | None = None) -> None:
    """Writes through a stage; then ends well, or with an error."""
    with stage as writer:
        for block in blocks(data):
            writer.write(block)
        if then is not None:
            raise then


def compressed(data: bytes, level: int = 2) -> bytes:
    sink = Gathered()
    with compressing(sink, level) as writer:
        for block in blocks(data):
            writer.write(block)
    return b"".join(sink.blocks)


def decompressed(data: bytes, size: int = 300_000) -> bytes:
    sink = Gathered()
    with decompressing(sink) as writer:
        for block in blocks(data, size):
            writer.write(block)
    return b"".join(sink.blocks)


# -- compression


@pytest.mark.parametrize("level", range(10))
@pytest.mark.parametrize("data", [b"", b"x", TEXT], ids=["empty", "a byte", "text"])
def test_the_gunzip_program_reads_every_level(level: int, data: bytes) -> None:
    packed = compressed(data, level)
    plain = subprocess.run(["gunzip", "-c"], input=packed, capture_output=True, check=True).stdout
    assert plain == data
    assert decompressed(packed) == data
    assert len(packed) < len(data) or level == 0 or len(data) < 2


@pytest.mark.parametrize("level", [1, 6, 9])
def test_what_the_gzip_program_made_is_read(level: int) -> None:
    packed = subprocess.run(["gzip", f"-{level}"], input=TEXT, capture_output=True, check=True).stdout
    assert decompressed(packed) == TEXT


@given(cuts=st.lists(st.integers(1, 5000), max_size=20), data=st.binary(max_size=5000))
@how(deadline=None, max_examples=60)
def test_a_gzip_stream_may_be_cut_anywhere(cuts: list[int], data: bytes) -> None:
    packed, sink = compressed(data), Gathered()
    with decompressing(sink) as writer:
        at = 0
        for cut in [*cuts, len(packed)]:
            writer.write(packed[at : at + cut])
            at += cut
    assert b"".join(sink.blocks) == data


@pytest.mark.parametrize("level", [2, 6])
def test_a_gzip_stream_that_is_cut_short_is_refused(level: int) -> None:
    packed = compressed(TEXT, level)
    ends = {*range(12), *range(0, len(packed), len(packed) // 60), *range(len(packed) - 12, len(packed))}
    for end in sorted(ends):
        with pytest.raises(IntegrityError, match="gzip stream is broken"):
            decompressed(packed[:end])


@pytest.mark.parametrize("tail", [b"\0", b"x" * 100, gzip.compress(b"another member", mtime=0)])
@pytest.mark.parametrize("size", [1, 300_000])
def test_bytes_after_its_end_are_refused(tail: bytes, size: int) -> None:
    with pytest.raises(IntegrityError, match="after its end"):
        decompressed(compressed(b"short") + tail, size)


@pytest.mark.parametrize("level", [0, 2, 6])
def test_a_flipped_bit_is_never_taken_for_the_truth(level: int) -> None:
    packed, chance = compressed(TEXT, level), random.Random(level)
    for _ in range(60):
        bit = chance.randrange(len(packed) * 8)
        with suppress_harmless(bit):
            assert decompressed(flipped(packed, bit)) == TEXT


@contextmanager
def suppress_harmless(bit: int) -> Iterator[None]:
    """A flip is seen; or it stands in the header (time, system), where it changes nothing of the data."""
    try:
        yield
    except IntegrityError:
        return
    assert bit < 10 * 8, f"bit {bit} was not seen"


@pytest.mark.parametrize("end", range(1, 9))
def test_a_wrong_checksum_or_length_in_its_trailer_is_refused(end: int) -> None:
    packed = compressed(TEXT)
    with pytest.raises(IntegrityError):
        decompressed(flipped(packed, (len(packed) - end) * 8))


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize(
    "data", [b"not gzip at all", b"\x1f\x8b\x08" + bytes(50), b"BZh91AY&SY", zlib.compress(TEXT)]
)
def test_what_is_not_gzip_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        decompressed(data)


def test_a_bomb_comes_in_blocks_of_bounded_size() -> None:
    size = 64 * BLOCK
    bomb, sizes = gzip.compress(bytes(size), 9), Sizes()
    with decompressing(sizes) as writer:
        writer.write(bomb)
    assert sizes.total == size
    assert sizes.largest <= BLOCK


class Sizes:
    """A sink that keeps only how much came."""

    def __init__(self) -> None:
        self.total = self.largest = 0

    def write(self, data: bytes) -> None:
        self.total += len(data)
        self.largest = max(self.largest, len(data))


@pytest.mark.parametrize("level", [2, 6])
def test_an_error_of_the_sink_comes_out_of_compressing(level: int) -> None:
    error = SinkFull("full")
    with pytest.raises(SinkFull) as raised:
        push(compressing(Refusing(error), level), os.urandom(BLOCK) * 40)
    assert raised.value is error


@pytest.mark.parametrize("level", [2, 6])
def test_an_error_upstream_comes_out_of_compressing_unchanged(level: int) -> None:
    error = SinkFull("upstream")
    with pytest.raises(SinkFull) as raised:
        push(compressing(Gathered(), level), TEXT, then=error)
    assert raised.value is error


def test_an_error_of_the_sink_comes_out_of_decompressing() -> None:
    error = SinkFull("full")
    with pytest.raises(SinkFull) as raised, decompressing(Refusing(error)) as writer:
        writer.write(compressed(TEXT))
    assert raised.value is error


def test_no_thread_outlives_compressing() -> None:
    before = threading.active_count()
    compressed(TEXT)
    with pytest.raises(SinkFull), compressing(Refusing(SinkFull()), 2) as writer:
        writer.write(TEXT)
    assert threading.active_count() <= before


# -- encryption


def encrypted(data: bytes, key: Key, work: Path, size: int = 300_000) -> bytes:
    sink = Gathered()
    with encrypting(sink, key, work) as writer:
        for block in blocks(data, size):
            writer.write(block)
    return b"".join(sink.blocks)


def decrypted(data: bytes, key: Key, work: Path) -> bytes:
    sink = Gathered()
    with decrypting(sink, key, work) as writer:
        for block in blocks(data):
            writer.write(block)
    return b"".join(sink.blocks)


@pytest.fixture
def home() -> Iterator[Path]:
    """A new keyring's directory, its path short enough for an agent's socket; the agent ends with it."""
    with tempfile.TemporaryDirectory(prefix="bd-gpg-") as folder:
        yield Path(folder)
        subprocess.run(["gpgconf", "--homedir", folder, "--kill", "all"], check=True, capture_output=True)


def gpg(home: Path, *words: str, data: bytes = b"") -> bytes:
    program: list[str | os.PathLike[str]] = [
        "gpg",
        "--homedir",
        home,
        "--batch",
        "--yes",
        "--pinentry-mode",
        "loopback",
        *words,
    ]
    return subprocess.run(program, input=data, capture_output=True, check=True).stdout


def gpg_children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.name().startswith("gpg")]


@pytest.mark.parametrize(
    "data", [b"", b"x", TEXT, os.urandom(3 * BLOCK + 1)], ids=["empty", "byte", "text", "random"]
)
def test_plain_gpg_reads_what_a_passphrase_locked(tmp_path: Path, home: Path, data: bytes) -> None:
    locked = encrypted(data, PASSPHRASE, tmp_path)
    assert gpg(home, "--passphrase", KEY, "-d", data=locked) == data
    assert decrypted(locked, PASSPHRASE, tmp_path) == data


@pytest.mark.parametrize(
    "passphrase", ["päss wörd 漢字 🐘", "x" * 200, " leading and trailing ", "a\\b$c'd\"e"]
)
def test_any_passphrase_is_the_same_for_us_and_for_gpg(tmp_path: Path, home: Path, passphrase: str) -> None:
    key = Key("symmetric", passphrase)
    locked = encrypted(TEXT, key, tmp_path)
    assert gpg(home, "--passphrase", passphrase, "-d", data=locked) == TEXT
    assert decrypted(locked, key, tmp_path) == TEXT


def test_the_message_is_aes256_with_mdc_and_not_compressed_again(tmp_path: Path, home: Path) -> None:
    locked = encrypted(TEXT, PASSPHRASE, tmp_path)
    said = gpg(home, "--passphrase", KEY, "--list-packets", data=locked).decode()
    assert "cipher 9" in said  # AES256, RFC 4880 section 9.2
    assert "s2k 3, hash 10" in said  # iterated and salted, SHA512
    assert "mdc_method: 2" in said
    assert ":literal data packet:" in said
    assert ":compressed packet:" not in said
    assert len(locked) > len(TEXT)


def test_two_encryptions_of_the_same_bytes_differ(tmp_path: Path) -> None:
    assert encrypted(b"same", PASSPHRASE, tmp_path) != encrypted(b"same", PASSPHRASE, tmp_path)


def test_a_wrong_passphrase_opens_nothing(tmp_path: Path) -> None:
    locked = encrypted(TEXT, PASSPHRASE, tmp_path)
    with pytest.raises(IntegrityError) as refused:
        decrypted(locked, Key("symmetric", "wrong, and secret"), tmp_path)
    assert "wrong, and secret" not in str(refused.value)
    assert refused.value.hint


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.9, 0.99999])
def test_a_message_that_is_cut_short_is_refused(tmp_path: Path, part: float) -> None:
    locked = encrypted(TEXT, PASSPHRASE, tmp_path)
    with pytest.raises(IntegrityError):
        decrypted(locked[: int(len(locked) * part)], PASSPHRASE, tmp_path)


@pytest.mark.parametrize("last", [1, 20, 22])
def test_a_message_without_its_last_bytes_is_refused(tmp_path: Path, last: int) -> None:
    locked = encrypted(TEXT, PASSPHRASE, tmp_path)
    with pytest.raises(IntegrityError):
        decrypted(locked[:-last], PASSPHRASE, tmp_path)


@pytest.mark.parametrize("part", [0.0001, 0.01, 0.5, 0.98, 0.99999])
def test_a_message_with_a_flipped_bit_is_refused(tmp_path: Path, part: float) -> None:
    locked = encrypted(TEXT, PASSPHRASE, tmp_path)
    with pytest.raises(IntegrityError):
        decrypted(flipped(locked, int(len(locked) * part) * 8 + 3), PASSPHRASE, tmp_path)


@pytest.mark.parametrize(
    "data",
    [b"", b"plain text, not a message", gzip.compress(TEXT, mtime=0), random.Random(1).randbytes(5000)],
)
def test_what_is_not_a_message_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(IntegrityError):
        decrypted(data, PASSPHRASE, tmp_path)


@pytest.mark.parametrize("seed", [39])
def test_noise_of_which_gpg_speaks_in_bytes_that_are_not_utf_8_is_refused(tmp_path: Path, seed: int) -> None:
    with pytest.raises(IntegrityError):
        decrypted(random.Random(seed).randbytes(5000), PASSPHRASE, tmp_path)


def test_a_message_that_was_never_encrypted_is_refused(tmp_path: Path, home: Path) -> None:
    stored = gpg(home, "--store", data=TEXT)
    with pytest.raises(IntegrityError):
        decrypted(stored, PASSPHRASE, tmp_path)


def test_off_hands_everything_on_unchanged(tmp_path: Path) -> None:
    assert encrypted(TEXT, Key("off"), tmp_path) == TEXT
    assert decrypted(TEXT, Key("off"), tmp_path) == TEXT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [SinkFull("full"), OSError(28, "no space"), BrokenPipeError("ours")], ids=repr
)
@pytest.mark.parametrize("direction", ["encrypting", "decrypting"])
def test_an_error_of_the_sink_comes_through_gpg_unchanged(
    tmp_path: Path, direction: str, error: Exception
) -> None:
    big = os.urandom(4 * BLOCK)
    data = big if direction == "encrypting" else encrypted(big, PASSPHRASE, tmp_path)
    stage = {"encrypting": encrypting, "decrypting": decrypting}[direction]
    with pytest.raises(type(error)) as raised:
        push(stage(Refusing(error), PASSPHRASE, tmp_path), data * 3)
    assert raised.value is error
    assert gpg_children() == []


@pytest.mark.parametrize(
    "error", [SinkFull("upstream"), KeyboardInterrupt(), BrokenPipeError("ours")], ids=repr
)
@pytest.mark.parametrize("direction", ["encrypting", "decrypting"])
def test_an_error_upstream_leaves_no_gpg_behind(tmp_path: Path, direction: str, error: BaseException) -> None:
    data = TEXT if direction == "encrypting" else encrypted(TEXT, PASSPHRASE, tmp_path)
    stage = {"encrypting": encrypting, "decrypting": decrypting}[direction]
    with pytest.raises(type(error)) as raised:
        push(stage(Gathered(), PASSPHRASE, tmp_path), data[: len(data) // 2], then=error)
    assert raised.value is error
    assert gpg_children() == []


@pytest.mark.parametrize("direction", ["encrypting", "decrypting"])
def test_a_killed_gpg_is_an_error_and_says_nothing_of_the_backup(tmp_path: Path, direction: str) -> None:
    data = TEXT * 3 if direction == "encrypting" else encrypted(TEXT * 3, PASSPHRASE, tmp_path)
    stage = {"encrypting": encrypting, "decrypting": decrypting}[direction]
    with pytest.raises(BackupDagError) as raised:
        push_and_kill(stage(Gathered(), PASSPHRASE, tmp_path), data[:5000], data * 5)
    assert not isinstance(raised.value, IntegrityError)
    assert KEY not in str(raised.value)
    assert gpg_children() == []


def test_a_gpg_killed_before_its_last_word_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackupDagError):
        push_and_kill(encrypting(Gathered(), PASSPHRASE, tmp_path), TEXT, b"")


def push_and_kill(stage: AbstractContextManager[Writer], before: bytes, after: bytes) -> None:
    """Writes, kills gpg, and goes on writing as if nothing had happened."""
    with stage as writer:
        writer.write(before)
        the_gpg().send_signal(signal.SIGKILL)
        for block in blocks(after):
            writer.write(block)


def the_gpg() -> psutil.Process:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if found := [child for child in gpg_children() if child.name() == "gpg"]:
            return found[0]
        time.sleep(0.01)
    raise AssertionError("no gpg was started")


@pytest.mark.parametrize("direction", ["encrypting", "decrypting"])
def test_the_passphrase_is_in_no_command_line_or_environment(
    tmp_path: Path, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKUP_ENCRYPTION_KEY", KEY)
    data = TEXT if direction == "encrypting" else encrypted(TEXT, PASSPHRASE, tmp_path)
    stage = {"encrypting": encrypting, "decrypting": decrypting}[direction]
    with stage(Gathered(), PASSPHRASE, tmp_path) as writer:
        writer.write(data)
        seen = [(" ".join(child.cmdline()), str(child.environ())) for child in [the_gpg()]]
    assert seen
    assert not any(KEY in text or "BACKUP_ENCRYPTION_KEY" in text for texts in seen for text in texts)


def test_no_agent_is_left_and_nothing_but_an_empty_home(tmp_path: Path) -> None:
    decrypted(encrypted(TEXT, PASSPHRASE, tmp_path), PASSPHRASE, tmp_path)
    assert agents_of(tmp_path) == []
    assert gpg_children() == []
    assert TEXT[:100] not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def agents_of(folder: Path) -> list[int]:
    agents = (
        p for p in psutil.process_iter(["name", "cmdline"]) if p.info["name"] in ("gpg-agent", "keyboxd")
    )
    return [agent.pid for agent in agents if str(folder) in " ".join(agent.info["cmdline"] or ())]


def test_no_file_or_thread_is_left_by_gpg(tmp_path: Path) -> None:
    encrypted(TEXT, PASSPHRASE, tmp_path)
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        encrypted(TEXT, PASSPHRASE, tmp_path)
        with pytest.raises(SinkFull), encrypting(Refusing(SinkFull()), PASSPHRASE, tmp_path) as writer:
            writer.write(TEXT * 5)
    deadline = time.monotonic() + 5  # what has ended is not gone at once
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= files


# -- recipients


@pytest.fixture(scope="module")
def keyrings() -> Iterator[tuple[Path, Path, str]]:
    """A home with a key pair, one with its public key alone, and its fingerprint."""
    with tempfile.TemporaryDirectory(prefix="bd-gpg-") as folder:
        full, public = Path(folder) / "full", Path(folder) / "public"
        for path in (full, public):
            path.mkdir(mode=0o700)
        gpg(
            full,
            "--passphrase",
            "",
            "--quick-generate-key",
            "Backup <b@example.org>",
            "future-default",
            "default",
            "never",
        )
        listed = gpg(full, "--with-colons", "--list-keys").decode()
        fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))
        gpg(public, "--import", data=gpg(full, "--export"))
        yield full, public, fingerprint
        for path in (full, public):
            subprocess.run(["gpgconf", "--homedir", path, "--kill", "all"], check=True, capture_output=True)


def test_a_host_with_only_the_public_key_encrypts_and_the_secret_key_opens(
    tmp_path: Path, keyrings: tuple[Path, Path, str], home: Path
) -> None:
    full, public, fingerprint = keyrings
    locked = encrypted(TEXT, Key("recipients", None, public, (fingerprint,)), tmp_path)
    assert gpg(full, "-d", data=locked) == TEXT
    assert decrypted(locked, Key("recipients", None, full, (fingerprint,)), tmp_path) == TEXT
    packets = subprocess.run(
        ["gpg", "--homedir", full, "--batch", "--list-packets"], input=locked, capture_output=True, check=True
    ).stdout.decode()
    assert "mdc_method: 2" in packets
    assert ":compressed packet:" not in packets


def test_a_host_without_the_secret_key_is_told_where_to_go(
    tmp_path: Path, keyrings: tuple[Path, Path, str]
) -> None:
    _, public, fingerprint = keyrings
    key = Key("recipients", None, public, (fingerprint,))
    locked = encrypted(TEXT, key, tmp_path)
    with pytest.raises(ConfigurationError) as refused:
        decrypted(locked, key, tmp_path)
    assert fingerprint in refused.value.message
    assert "BACKUP_GPG_HOME" in refused.value.hint
    assert gpg_children() == []


def test_a_recipient_is_found_by_its_address(settings: Settings, keyrings: tuple[Path, Path, str]) -> None:
    _, public, fingerprint = keyrings
    chosen = {"backup_gpg_recipients": ("b@example.org",), "backup_gpg_home": public}
    key = encryption_key(settings.model_copy(update=chosen))
    assert (key.mode, key.fingerprints) == ("recipients", (fingerprint,))
    with pytest.raises(ConfigurationError, match="nobody@example"):
        encryption_key(
            settings.model_copy(update={**chosen, "backup_gpg_recipients": ("nobody@example.org",)})
        )


def test_a_public_key_that_cannot_encrypt_is_a_matter_of_configuration(
    settings: Settings, home: Path
) -> None:
    gpg(
        home, "--passphrase", "", "--quick-generate-key", "Signer <s@example.org>", "ed25519", "sign", "never"
    )
    chosen = {"backup_gpg_recipients": ("s@example.org",), "backup_gpg_home": home}
    with pytest.raises(ConfigurationError, match=r"s@example\.org"):
        encryption_key(settings.model_copy(update=chosen))


# -- all stages


def test_the_two_lines_for_a_shell_bring_it_back(
    postgres: Postgres, sample: str, settings: Settings, home: Path
) -> None:
    made = take_backup(settings, order_for(database(sample), settings, None))
    folder = settings.backup_dir
    subprocess.run(
        ["sha256sum", "--strict", "-c", f"{made.id}.sha256"], cwd=folder, check=True, capture_output=True
    )
    locked = (folder / made.artifact.name).read_bytes()
    packed = gpg(home, "--passphrase", KEY, "-d", data=locked)
    plain = subprocess.run(["gunzip", "-c"], input=packed, capture_output=True, check=True).stdout
    assert (len(packed), len(plain)) == (made.compressed.bytes, made.dump.bytes)
    assert measured(plain).sha256 == made.dump.sha256


# -- archives as text


def test_what_is_not_an_archive_is_refused(postgres: Postgres) -> None:
    clients = Clients(postgres.bin_dir, str(postgres.version))
    for data in (b"", b"not an archive" * 1000, b"PGDMP" + bytes(100)):
        with pytest.raises(IntegrityError), as_sql(Gathered(), clients, format="custom") as writer:
            writer.write(data)


def test_an_archive_that_is_cut_short_is_refused(postgres: Postgres, sample: str) -> None:
    clients = Clients(postgres.bin_dir, str(postgres.version))
    archive = pg_dump(postgres, sample, "--format=custom", "--compress=0")
    for part in (0.1, 0.5, 0.99):
        with pytest.raises(IntegrityError), as_sql(Gathered(), clients, format="custom") as writer:
            writer.write(archive[: int(len(archive) * part)])


@pytest.mark.timeout(20)
def test_an_error_of_the_sink_comes_out_of_reading_an_archive(postgres: Postgres) -> None:
    clients, error = Clients(postgres.bin_dir, str(postgres.version)), SinkFull("full")
    url = make_database(postgres)
    run_sql(url, "CREATE TABLE t AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 12000) AS n")
    archive = pg_dump(postgres, url, "--format=custom", "--compress=0")
    with pytest.raises(SinkFull) as raised:
        push(as_sql(Refusing(error), clients, format="custom"), archive)
    assert raised.value is error


# -- checksum


def test_the_checksum_file_is_what_sha256sum_writes(tmp_path: Path) -> None:
    of = manifest()
    expected = "".join(f"{file.sha256}  {file.name}\n" for file in (of.artifact, of.globals))
    assert checksum_file(of.files) == expected


def test_lengths_and_digests_are_compared() -> None:
    compare("x", measured(b"same"), measured(b"same"))
    with pytest.raises(IntegrityError, match="3 bytes where the manifest promises 4"):
        compare("x", measured(b"same"), measured(b"sam"))
    with pytest.raises(IntegrityError, match="SHA-256"):
        compare("x", measured(b"same"), measured(b"sAme"))
