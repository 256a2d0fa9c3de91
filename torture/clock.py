"""A clock that is wrong, and time that has passed."""

import sys
from datetime import datetime, timedelta
from typing import Any

from backup_dag.core.store.s3 import S3Store


class Jumping:
    """Has this process's clock jump, once it has been asked so many times."""

    def __init__(self, by: timedelta, after: int) -> None:
        self._by, self._after = by, after

    def __call__(self) -> None:
        jumping = self

        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
                jumping._after -= 1
                real = datetime.now(tz)
                return real + jumping._by if jumping._after < 0 else real

        for name, module in list(sys.modules.items()):
            if name.startswith("backup_dag") and getattr(module, "datetime", None) is datetime:
                setattr(module, "datetime", Clock)  # noqa: B010


class Passed(Jumping):
    """So much time has passed: for the bucket's server, too."""

    def __init__(self, time: timedelta) -> None:
        super().__init__(time, 0)

    def __call__(self) -> None:
        super().__call__()
        asked, by = S3Store.clock, self._by
        setattr(S3Store, "clock", lambda store: asked(store) + by)  # noqa: B010
