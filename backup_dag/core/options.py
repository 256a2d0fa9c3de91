"""Which of pg_dump's options a backup may be made with: those that leave the stream as we read it.

They stand in a plan, which the user writes, and in a manifest, which lies in a bucket. So both are held to
this list before a program is started with them. Written out, since pg_dump takes abbreviations.
"""

SELECTING = ("schema", "exclude-schema", "table", "exclude-table", "exclude-table-data")
"""Those that a plan's own keys stand for, without their dashes; each takes a pattern."""

PASSED_ON = frozenset(
    """--disable-dollar-quoting --disable-triggers --exclude-extension --exclude-table-and-children
    --exclude-table-data-and-children --extension --extra-float-digits --include-foreign-data
    --large-objects --load-via-partition-root --lock-wait-timeout --no-comments --no-large-objects
    --no-owner --no-policies --no-privileges --no-publications --no-security-labels --no-statistics
    --no-subscriptions --no-table-access-method --no-tablespaces --no-toast-compression
    --no-unlogged-table-data --quote-all-identifiers --role --strict-names
    --table-and-children --use-set-session-authorization""".split()  # noqa: SIM905
)
"""Those that a plan may pass on as they are. Not --statistics: a restored database gathers its own."""

_LEAVING_OUT = (
    *("--schema", "--exclude-schema", "--table", "--exclude-table", "--exclude-table-data"),
    *("--exclude-table-and-children", "--exclude-table-data-and-children", "--table-and-children"),
    *("--no-large-objects", "--no-unlogged-table-data", "--exclude-extension", "--extension"),
)


def may_be_passed_on(option: str) -> bool:
    """Whether it is one that we make, or that a plan may pass on."""
    name = option.partition("=")[0]
    return name in PASSED_ON or ("=" in option and name.removeprefix("--") in SELECTING)


def leaving_out(options: list[str]) -> list[str]:
    """Those of them by which a backup holds less than its database."""
    return [option for option in options if option.partition("=")[0] in _LEAVING_OUT]


def selects_schemas(options: list[str]) -> bool:
    """Whether pg_dump was told which schemas to dump: then it makes each of them, `public` too."""
    return any(option.startswith("--schema=") for option in options)
