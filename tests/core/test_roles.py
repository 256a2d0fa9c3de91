"""Reading what pg_dumpall wrote: whose text is whose, whatever anyone put into quotes."""

import time

import pytest

from backup_dag.core.errors import IntegrityError
from backup_dag.core.restoring.roles import Roles, roles_in
from backup_dag.core.stages.dump import PROPERTIES

BEGIN = "--\n-- Roles\n--\n\n\\restrict abc\n\nSET client_encoding = 'UTF8';\n\n"
OTHER = 'CREATE ROLE "a b";\nALTER ROLE "a b" WITH NOSUPERUSER LOGIN;\n'
ABOUT = "SET client_encoding = 'UTF8';\nSELECT 'ALTER DATABASE \"d\" OWNER TO \"a b\"'\n\\gexec\n"


def file(*statements: str) -> bytes:
    return (BEGIN + "".join(statements) + "\n\\unrestrict abc\n" + PROPERTIES + ABOUT).encode()


@pytest.mark.parametrize(
    "statement",
    [
        f"ALTER ROLE mallory SET \"app.x\" TO '{PROPERTIES}ALTER ROLE mallory SUPERUSER; -- ';\n",
        f"COMMENT ON ROLE mallory IS '{PROPERTIES}';\n",
        f"SECURITY LABEL FOR \"p\" ON ROLE mallory IS 'a{PROPERTIES}CREATE ROLE evil;\n';\n",
        f"ALTER ROLE mallory SET \"app.x\" TO E'it''s \\\\{PROPERTIES}';\n",
    ],
)
def test_a_text_in_quotes_is_not_the_end_of_the_roles(statement: str) -> None:
    roles = roles_in(file("CREATE ROLE mallory;\n", statement, OTHER), "globals")
    assert roles.about_database == ABOUT
    assert roles.names == ["mallory", "a b"]


def test_a_line_in_quotes_is_no_statement() -> None:
    label = "SECURITY LABEL FOR \"p\" ON ROLE x IS 'a\nCREATE ROLE evil SUPERUSER;\n';\n"
    assert Roles(label + OTHER).names == ["a b"]


def test_what_a_role_set_for_itself_comes_back_as_it_was() -> None:
    setting = 'ALTER ROLE "a b" SET "app.x" TO \' WITH NOSUPERUSER SUPERUSER\';'
    made = Roles(f"{OTHER}{setting}\n").making(["a b"], superuser=False)
    assert made == ['CREATE ROLE "a b";', 'ALTER ROLE "a b" WITH LOGIN;', setting]


@pytest.mark.parametrize(
    "text",
    [
        "CREATE ROLE a " + "''" * 60,
        "CREATE ROLE a\n" * 70_000,
        'GRANT "a" TO "b" ' + '""' * 60,
        "ALTER ROLE a " + "WITH A " * 140_000 + ";",
        'ALTER ROLE "' + "a" * 900_000,
        "'" * 999_999,
    ],
    ids=["quotes", "no end", "names", "with", "a name", "only quotes"],
)
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()
    roles = Roles(text)
    roles.making(roles.names, superuser=False)
    assert time.process_time() - began < 2


def test_what_is_no_text_is_said() -> None:
    with pytest.raises(IntegrityError, match="globals holds no text"):
        roles_in(file("COMMENT ON ROLE a IS '").replace(b"IS '", b"IS '\xff"), "globals")
