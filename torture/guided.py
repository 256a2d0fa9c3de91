"""`python -m torture.guided KIND [libFuzzer's options]`: hostile input where coverage leads, by atheris.

It goes on until something is found, or it is ended (`-max_total_time=600`). What it finds belongs into
tests/corpus/<kind>/.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

with atheris.instrument_imports(include=["backup_dag"]):
    from torture.inputs import fault, kinds, shown


def main() -> None:
    with kinds() as readers, tempfile.TemporaryDirectory(prefix="guided-") as folder:
        if len(sys.argv) < 2 or sys.argv[1] not in readers:
            raise SystemExit(f"which one? {', '.join(readers)}")
        kind = readers[sys.argv.pop(1)]

        def one(text: bytes) -> None:
            if said := fault(kind.target, text):
                raise AssertionError(f"{said}: {shown(text)}")

        for number, seed in enumerate(kind.seeds):
            (Path(folder) / str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, folder], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
