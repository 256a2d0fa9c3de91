"""Entries of a schema's text, by pg_dump's headers: whatever a user's names and texts look like."""

import time

import pytest

from backup_dag.core.restoring.schemas import Schema


def entries(text: str) -> list[str]:
    schema = Schema()
    schema.write(text.encode())
    return list(schema.entries())


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("t; Type: TABLE; Schema: public; Owner: me", "table t in schema public"),
        (
            "a; Type: X; Schema: b; Owner: c; Type: VIEW; Schema: s; Owner: me",
            "view a; Type: X; Schema: b; Owner: c in schema s",
        ),
        ("t; Type: TABLE; Schema: a; Owner: b; Owner: c", "table t in schema a"),
        ("e; Type: EXTENSION; Schema: -; Owner: -", "extension e"),
        ("t; Type: table; Schema: public; Owner: me", "Name: t; Type: table; Schema: public; Owner: me"),
        ("t; Type: TABLE; Schema: public", "Name: t; Type: TABLE; Schema: public"),
    ],
)
def test_an_entry_is_called_as_its_header_says(header: str, said: str) -> None:
    assert entries(f"--\n-- Name: {header}\n--\n\nCREATE …;\n") == [said]


@pytest.mark.parametrize("repeated", ["; Type: ", "; Type: A; Schema: ", "; Schema: ", "; Owner: "])
@pytest.mark.parametrize("end", ["", "; Schema: x", "; Owner: me"])
def test_no_text_takes_long(repeated: str, end: str) -> None:
    began = time.process_time()
    entries(f"-- Name: {repeated * (900_000 // len(repeated))}{end}\n")
    assert time.process_time() - began < 2
