"""What can go wrong, and what the reader of the message does next.

    BackupDagError                 1  unexpected
    ├── ConfigurationError         3  a setting is missing, malformed or weak
    ├── DatabaseError              4  the database was unreachable, or refused
    │   └── DatabaseUnreachable    4    …and trying again may help
    ├── BackupNotFound             5  no such backup
    ├── IntegrityError             6  checksum, decryption, truncation, digest
    ├── StoreError                 7  a store refused
    │   └── StoreUnreachable       7    …and trying again may help
    ├── GuardRefused               8  a guard said no: lock held, target not allowed
    ├── DeliveryFailed             1  somebody could not be told; trying again may help
    ├── ProgramStalled             1  a program on this machine stood still; trying again may help
    ├── DrillBroke                 *  a drill came to no end; * that of what broke it
    └── DiskError                  9  disk full, or not writable

Every error says what was tried and on what (the message), and what to do next (the hint).
None of them ever carries a secret: messages are stored in event logs for ever.
"""


class BackupDagError(Exception):
    """The root. `exit_code` is the terminal's exit status, `retryable` whether trying again can help."""

    exit_code = 1
    retryable = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message


class ConfigurationError(BackupDagError):
    exit_code = 3


class DatabaseError(BackupDagError):
    """`sqlstate` is the server's own code for what it refused, where it said one."""

    exit_code = 4

    def __init__(self, message: str, *, hint: str = "", sqlstate: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.sqlstate = sqlstate


class DatabaseUnreachable(DatabaseError):
    retryable = True


class ChangedBeneath(DatabaseError):
    """Something was changed beneath a dump in a way that its snapshot does not hide."""

    retryable = True


class BackupNotFound(BackupDagError):
    exit_code = 5


class IntegrityError(BackupDagError):
    exit_code = 6


class StoreError(BackupDagError):
    exit_code = 7


class StoreUnreachable(StoreError):
    retryable = True


class GuardRefused(BackupDagError):
    exit_code = 8


class DeliveryFailed(BackupDagError):
    """`told` are those who were reached all the same."""

    retryable = True

    def __init__(self, message: str, *, hint: str = "", told: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.told = told


class ProgramStalled(BackupDagError):
    retryable = True


class DrillBroke(BackupDagError):
    """Nothing was found out about the backup: what broke is the drill. Exit code and hint are its cause's."""

    def __init__(self, what: str, cause: BackupDagError) -> None:
        said = f"the drill of {what} broke, which says nothing of the backup: {cause.message}"
        super().__init__(said, hint=cause.hint)
        self.exit_code, self.retryable = cause.exit_code, cause.retryable


class DiskError(BackupDagError):
    exit_code = 9


OWN_CHECK_FAILED, INTERRUPTED = 10, 130

EXIT_CODES = {
    0: "fine",
    1: "unexpected",
    2: "usage",
    3: "configuration",
    4: "database unreachable or it refused",
    5: "no such backup",
    6: "integrity (checksum, decrypt, truncation, digest)",
    7: "store unreachable or it refused",
    8: "refused by a guard (no confirmation, lock held, target not allowed)",
    9: "disk",
    OWN_CHECK_FAILED: "a backup is proven, and a check of your own failed (drill)",
    INTERRUPTED: "interrupted",
}
