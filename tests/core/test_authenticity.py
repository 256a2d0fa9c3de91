"""Who wrote a manifest: whatever is changed in it, or put in its place, is found."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from pydantic import SecretStr

from backup_dag.core.authenticity import authenticator, canonical, check, in_words
from backup_dag.core.copies import Copy
from backup_dag.core.errors import BackupDagError, ConfigurationError, IntegrityError
from backup_dag.core.gpg import agent_ended
from backup_dag.core.manifest import Encryption, Manifest, read_manifest
from backup_dag.core.settings import Settings
from backup_dag.core.store.local import LocalStore
from tests.authentic import agents, covered, end_agent, gpg, keyring, new_key, public_keys, scrypt, with_mac
from tests.conftest import KEY
from tests.core.made import manifest

OTHER = "another passphrase, for another time"
FINGERPRINT = scrypt(KEY, "backup-dag passphrase fingerprint 1", 8).hex()


def under_the_passphrase() -> Manifest:
    key = Encryption(mode="symmetric", cipher="AES256", key_fingerprints=[FINGERPRINT])
    return manifest().model_copy(update={"encryption": key})


def plain() -> Settings:
    return Settings.model_construct(
        **{
            **{name: field.default for name, field in Settings.model_fields.items()},
            "backup_encryption_key": SecretStr(KEY),
        }
    )


def having(**changed: Any) -> Settings:
    return plain().model_copy(update=changed)


def copy_of(document: dict[str, Any] | str) -> Copy:
    """As the catalog would have read it. Raises IntegrityError where it cannot be read at all."""
    text = (document if isinstance(document, str) else json.dumps(document)).encode()
    name = f"{json.loads(text).get('backup')}.json"
    return Copy(LocalStore(Path("/store")), read_manifest(text, name), None, document=text)


def documented(made: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(made.to_json())
    return found


@cache
def good() -> dict[str, Any]:
    return documented(authenticator(plain())(under_the_passphrase()))


# -- what is made


def test_what_was_made_under_the_passphrase_is_as_the_format_says() -> None:
    assert good() == with_mac(documented(under_the_passphrase()))
    said = check(plain(), copy_of(good()))
    assert in_words(said) == "authenticated by the passphrase"


def test_the_text_may_be_laid_out_otherwise() -> None:
    """What counts is what it says: a program that sorted or indented it changed nothing."""
    backwards = dict(reversed(good().items()))
    for text in (json.dumps(backwards), json.dumps(good(), indent=7, ensure_ascii=False)):
        assert check(plain(), copy_of(text)) is not None


def test_a_field_of_a_later_version_is_covered_too() -> None:
    later = with_mac({**good(), "added_later": {"x": [1.50, "größe"]}})
    assert check(plain(), copy_of(later)) is not None
    later["added_later"]["x"][0] = 1.51
    with pytest.raises(IntegrityError, match="was changed"):
        check(plain(), copy_of(later))


def test_encryption_that_is_off_leaves_a_passphrase_to_authenticate_with() -> None:
    off = having(backup_encryption="off")
    made = manifest().model_copy(
        update={"encryption": Encryption(mode="off", cipher=None, key_fingerprints=[])}
    )
    assert check(off, copy_of(documented(authenticator(off)(made)))) is not None


def test_without_a_key_nothing_is_authenticated_and_nothing_demanded() -> None:
    for bare in (
        having(backup_encryption="off", backup_encryption_key=None),
        having(backup_gpg_recipients=("a@example.org",)),
    ):
        made = authenticator(bare)(manifest())
        assert made == manifest()
        assert "authentication" not in documented(made)
        assert check(bare, copy_of(documented(made))) is None


# -- what is found


def leaves(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value that has no more within it."""
    within = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    if not within:
        yield path
    for name, value in within:
        yield from leaves(value, (*path, name))


numbers = st.integers(-(10**6), 10**6) | st.floats(allow_nan=False, allow_infinity=False)
values = st.none() | st.booleans() | numbers | st.text()


@given(at=st.sampled_from(sorted(leaves(good()), key=str)), value=values)
@how(deadline=None, max_examples=400)
def test_any_change_of_any_value_is_found(at: tuple[Any, ...], value: Any) -> None:
    changed = deepcopy(good())
    holder = changed
    for name in at[:-1]:
        holder = holder[name]
    before = holder[at[-1]]
    if type(before) is type(value) and before == value:
        return
    holder[at[-1]] = value
    with pytest.raises(BackupDagError):
        check(plain(), copy_of(changed))


@given(at=st.sampled_from(sorted(leaves(good()), key=str)))
@how(deadline=None, max_examples=200)
def test_any_value_that_is_taken_away_is_found(at: tuple[Any, ...]) -> None:
    changed = deepcopy(good())
    holder = changed
    for name in at[:-1]:
        holder = holder[name]
    del holder[at[-1]]
    with pytest.raises(BackupDagError):
        check(plain(), copy_of(changed))


def change(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def changed(document: dict[str, Any]) -> None:
        for name in path[:-1]:
            document = document[name]
        assert document[path[-1]] != to
        document[path[-1]] = to

    return changed


OFF: dict[str, Any] = {"mode": "off", "cipher": None, "key_fingerprints": []}
RECIPIENTS = {"mode": "recipients", "cipher": "AES256", "key_fingerprints": ["A" * 40]}
CHANGES = {
    "the rows of a table": change("content", "tables", "public.t", "rows", to=2),
    "an option": change("dump", "options", to=["--no-owner"]),
    "the partition day": change("partition_day", to="2026-03-15"),
    "the owner": change("source", "owner", to="mallory"),
    "the server": change("server", "system_identifier", to="8"),
    "the day and the reason": change("reason", to="scheduled"),
    "the globals": change("globals", "sha256", to="0" * 64),
    "how to recover it": change("recover", to=["rm -rf ~", "true"]),
    "no encryption": change("encryption", to=OFF),
    "another passphrase": change("encryption", "key_fingerprints", to=["f" * 16]),
    "public keys": change("encryption", to=RECIPIENTS),
    "the MAC": change("authentication", "mac", to="0" * 64),
    "a MAC that is no hex": change("authentication", "mac", to="größe"),
    "the time, within its second": change("snapshot_time", to="2026-03-14T12:00:00.5Z"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_found_and_the_file_named(what: str) -> None:
    changed = deepcopy(good())
    CHANGES[what](changed)
    with pytest.raises(IntegrityError, match=r"/store/backup_orders_\d+_\d+\.json was changed"):
        check(plain(), copy_of(changed))


def test_a_backup_under_another_name_is_found() -> None:
    """Everything goes along with the new name, but the MAC."""
    renamed = json.loads(json.dumps(good()).replace("20260314_120000", "20260401_120000"))
    renamed |= {"snapshot_time": "2026-04-01T12:00:00Z", "partition_day": "2026-04-01"}
    with pytest.raises(IntegrityError, match=r"backup_orders_20260401_120000\.json was changed"):
        check(plain(), copy_of(renamed))


@pytest.mark.parametrize("encryption", [None, OFF, RECIPIENTS])
def test_authentication_that_was_stripped_is_missed_whatever_the_mode_says(
    encryption: dict[str, Any] | None,
) -> None:
    stripped = {name: value for name, value in good().items() if name != "authentication"}
    stripped |= {"encryption": encryption} if encryption else {}
    for document in (stripped, {**stripped, "authentication": None}):
        with pytest.raises(IntegrityError, match=r"is not authenticated.*BACKUP_ACCEPT_UNAUTHENTICATED"):
            check(plain(), copy_of(document))


def test_one_from_before_is_accepted_where_that_is_said_and_one_that_was_changed_is_not() -> None:
    accepting = having(backup_accept_unauthenticated="on")
    said = check(accepting, copy_of(documented(under_the_passphrase())))
    assert "NOT authenticated" in in_words(said)
    changed = deepcopy(good())
    CHANGES["the owner"](changed)
    with pytest.raises(IntegrityError):
        check(accepting, copy_of(changed))


def test_another_passphrase_is_a_matter_of_configuration_and_not_damage() -> None:
    theirs = Encryption(mode="symmetric", cipher="AES256", key_fingerprints=["f" * 16])
    made = with_mac(documented(manifest().model_copy(update={"encryption": theirs})), OTHER)
    made["encryption"]["key_fingerprints"] = [made["authentication"]["key"]]
    with pytest.raises(ConfigurationError, match=f"has fingerprint {made['authentication']['key']}"):
        check(plain(), copy_of(with_mac(made, OTHER)))
    with pytest.raises(ConfigurationError, match="none is set here"):
        check(having(backup_encryption_key=None), copy_of(good()))


@pytest.mark.parametrize("encryption", [RECIPIENTS, {**RECIPIENTS, "mode": "symmetric"}])
def test_a_mac_that_no_backup_has_is_no_matter_of_configuration(encryption: dict[str, Any]) -> None:
    """Made with a passphrase of the attacker's, on what is to be opened by another key."""
    with pytest.raises(IntegrityError, match="somebody else wrote it"):
        check(plain(), copy_of(with_mac({**good(), "encryption": encryption}, OTHER)))


def test_a_name_that_stands_there_twice_is_refused() -> None:
    """One program would take the first, and another the last."""
    text = json.dumps(good())
    twice = text.replace('"owner": "postgres"', '"owner": "mallory", "owner": "postgres"')
    assert twice != text
    with pytest.raises(IntegrityError, match="in two ways"):
        check(plain(), copy_of(twice))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_no_number_is_covered_by_nothing(number: str) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical(f'{{"x": {number}}}'.encode())


@given(document=st.dictionaries(st.text(), st.recursive(values, st.lists, max_leaves=5)))
@how(deadline=None)
def test_the_canonical_form_is_the_same_for_another_program(document: dict[str, Any]) -> None:
    assert canonical(json.dumps(document).encode()) == covered(document)


# -- signatures


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with keyring() as made:
        yield made


@pytest.fixture(scope="module")
def signer(home: Path) -> str:
    return new_key(home, "signer")


@pytest.fixture(scope="module")
def stranger(home: Path) -> str:
    """A key that the keyring knows, and nobody named in the settings."""
    return new_key(home, "stranger")


def signing(home: Path, *keys: str, **changed: Any) -> Settings:
    return having(backup_gpg_home=home, backup_gpg_signing_key=keys, backup_encryption_key=None, **changed)


def test_a_signature_is_made_and_found_good_by_a_host_with_the_public_key(home: Path, signer: str) -> None:
    document = documented(authenticator(signing(home, signer))(manifest()))
    assert not agents(home)
    assert document["authentication"]["signature"].startswith("-----BEGIN PGP SIGNATURE-----")
    with keyring() as elsewhere:
        checking = signing(public_keys(home, elsewhere), signer)
        assert in_words(check(checking, copy_of(document))) == f"authenticated by the signature of {signer}"
        document["source"]["owner"] = "mallory"
        with pytest.raises(IntegrityError, match="no good one"):
            check(checking, copy_of(document))
        assert not agents(elsewhere)


def test_a_signing_key_goes_before_the_passphrase_and_earlier_macs_stay_good(home: Path, signer: str) -> None:
    both = signing(home, signer).model_copy(update={"backup_encryption_key": SecretStr(KEY)})
    made = authenticator(both)(under_the_passphrase())
    assert made.authentication is not None
    assert made.authentication.mode == "signature"
    assert check(both, copy_of(good())) is not None


def test_a_strangers_signature_is_found_whomever_it_names(home: Path, signer: str, stranger: str) -> None:
    document = documented(authenticator(signing(home, stranger))(manifest()))
    for claimed in (stranger, signer):
        document["authentication"]["key"] = claimed
        for accept in ("off", "on"):
            with pytest.raises(IntegrityError, match="no good one"):
                check(signing(home, signer, backup_accept_unauthenticated=accept), copy_of(document))


def test_a_signature_of_something_else_is_found(home: Path, signer: str) -> None:
    document = documented(authenticator(signing(home, signer))(manifest()))
    for text in ("", "nothing of the kind", gpg(home, "-u", signer, "-sa", data=b"else").decode()):
        document["authentication"]["signature"] = text
        with pytest.raises(IntegrityError):
            check(signing(home, signer), copy_of(document))


def test_a_message_that_brings_its_own_text_signs_nothing_of_ours(home: Path, signer: str) -> None:
    """Signed as a whole, instead of apart: gpg would find it good by itself."""
    document = documented(authenticator(signing(home, signer))(manifest()))
    whole = gpg(home, "-u", signer, "--clear-sign", data=b"whatever").decode()
    document["authentication"]["signature"] = whole
    with pytest.raises(IntegrityError):
        check(signing(home, signer), copy_of(document))


def test_a_stripped_or_swapped_signature_is_found(home: Path, signer: str) -> None:
    document = documented(authenticator(signing(home, signer))(manifest()))
    with pytest.raises(IntegrityError, match="not authenticated"):
        check(signing(home, signer), copy_of({**document, "authentication": None}))
    recipients = {**document, "encryption": RECIPIENTS}
    with pytest.raises(IntegrityError, match="somebody else"):
        check(signing(home, signer), copy_of(with_mac(recipients, OTHER)))


def test_any_of_the_keys_is_accepted_and_the_first_that_can_signs(
    home: Path, signer: str, stranger: str
) -> None:
    made = documented(authenticator(signing(home, "F" * 40, signer, stranger))(manifest()))
    assert made["authentication"]["key"] == signer
    assert check(signing(home, stranger, signer), copy_of(made)) is not None


def test_without_a_key_to_hold_it_to_it_cannot_be_told(home: Path, signer: str) -> None:
    made = documented(authenticator(signing(home, signer))(manifest()))
    with pytest.raises(ConfigurationError, match=f"signed by {signer}"):
        check(signing(home), copy_of(made))
    assert check(signing(home, backup_accept_unauthenticated="on"), copy_of(made)) is None
    with keyring() as empty, pytest.raises(ConfigurationError, match="lacks the public key"):
        check(signing(empty, signer), copy_of(made))


def test_a_key_that_is_not_here_is_said_before_anything_is_made(home: Path, signer: str) -> None:
    with keyring() as elsewhere, pytest.raises(ConfigurationError, match="none of BACKUP_GPG_SIGNING_KEY"):
        authenticator(signing(public_keys(home, elsewhere), signer))


def test_an_expired_key_signs_no_more_and_what_it_signed_stays_good(home: Path) -> None:
    key = new_key(home, "expired", expires="20200201T000000", at="20200101T000000!")
    with pytest.raises(ConfigurationError, match="expired"):
        authenticator(signing(home, key))
    assert not agents(home)
    document = documented(manifest())
    clock = ["--faked-system-time", "20200115T000000!"]
    made = gpg(home, *clock, "-u", key, "--armor", "--detach-sign", data=covered(document)).decode()
    end_agent(home)
    document["authentication"] = {"mode": "signature", "key": key, "signature": made}
    assert check(signing(home, key), copy_of(document)) is not None


def test_a_revoked_keys_signature_is_good_no_more(home: Path) -> None:
    key = new_key(home, "revoked")
    made = documented(authenticator(signing(home, key))(manifest()))
    [certificate] = (home / "openpgp-revocs.d").glob(f"{key}.rev")
    gpg(home, "--import", data=certificate.read_text().replace(":-----", "-----").encode())
    with pytest.raises(IntegrityError):
        check(signing(home, key), copy_of(made))
    with pytest.raises(ConfigurationError):
        authenticator(signing(home, key))


def test_a_locked_key_is_unlocked_by_the_passphrase_or_refused_at_once(home: Path) -> None:
    key = new_key(home, "locked", passphrase=KEY)
    right = signing(home, key).model_copy(update={"backup_encryption_key": SecretStr(KEY)})
    assert check(right, copy_of(documented(authenticator(right)(manifest())))) is not None
    for wrong in (None, SecretStr(OTHER)):
        with pytest.raises(ConfigurationError, match="signing with the key") as refused:
            authenticator(right.model_copy(update={"backup_encryption_key": wrong}))
        assert OTHER not in str(refused.value)
    assert not agents(home)


def test_a_signing_key_is_named_by_its_whole_fingerprint() -> None:
    spaced = "0123 4567 89AB CDEF 0123  4567 89AB CDEF 0123 4567"
    found = Settings.model_validate({"backup_gpg_signing_key": f"0x{'a' * 40}, {spaced}"})
    assert found.backup_gpg_signing_key == ("A" * 40, spaced.replace(" ", ""))
    for text in ("0123456789ABCDEF", "me@example.org", "A" * 41):
        with pytest.raises(ValueError, match="whole fingerprints"):
            Settings.model_validate({"backup_gpg_signing_key": text})


def test_an_agent_ends_with_the_last_that_uses_it_and_one_that_was_there_before_stays(
    home: Path, signer: str
) -> None:
    with agent_ended(home):
        gpg(home, "-u", signer, "--detach-sign", data=b"x")
        with agent_ended(home):
            pass
        assert agents(home)
    assert not agents(home)
    gpg(home, "-u", signer, "--detach-sign", data=b"x")
    authenticator(signing(home, signer))
    assert agents(home)
    end_agent(home)


# -- by hand


def test_the_formats_recipes_check_what_we_made(home: Path, signer: str, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    [recipe] = re.findall(r"```python\n(.*?)```", text, re.S)
    (tmp_path / "check.py").write_text(recipe)
    changed = deepcopy(good())
    CHANGES["the owner"](changed)

    def run(document: dict[str, Any]) -> str:
        path = tmp_path / "manifest.json"
        path.write_text(json.dumps(document))
        words = [sys.executable, "check.py", path.name]
        ended = subprocess.run(
            words, cwd=tmp_path, input=f"{KEY}\n", capture_output=True, text=True, check=True
        )
        return ended.stdout

    assert "authentic\n" in run(good())
    assert "NOT" in run(changed)
    signed = documented(authenticator(signing(home, signer))(manifest()))
    assert run(signed).startswith("gpg --verify ")
    assert b"VALIDSIG" in gpg(
        home,
        "--status-fd",
        "1",
        "--verify",
        str(tmp_path / "manifest.json.asc"),
        str(tmp_path / "manifest.json.signed"),
    )
