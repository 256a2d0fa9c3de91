"""`make torture`: faults of every kind at every moment, and after each the same questions.

python -m torture [--seed N] [--kind WORD …] [--case TEXT] [--quick] [--write]
"""

import argparse
import multiprocessing
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from torture.report import of_faults, table, write
from torture.suite import KINDS, WHOLE, WORLDS, cases, tortured
from torture.tally import Tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    kinds = [*KINDS, *WHOLE]
    parser.add_argument("--kind", action="append", choices=kinds, help="only this kind of fault")
    parser.add_argument("--case", default="", help="only cases whose name holds this")
    parser.add_argument("--quick", action="store_true", help="a few of each")
    parser.add_argument("--write", action="store_true", help="write docs/RELIABILITY.md")
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    began = time.monotonic()
    wanted = chosen.kind or kinds
    share = (chosen.seed, [kind for kind in wanted if kind in KINDS], chosen.case, chosen.quick)
    whole = [kind for kind in wanted if kind in WHOLE and not (chosen.case or chosen.quick)]
    many = len(cases(*share[:3], quick=chosen.quick))
    if not (many or whole):
        print(f"no case's name holds {chosen.case!r}")
        return 2
    besides = f"; besides: {', '.join(whole)}" if whole else ""
    print(f"{many:,} cases, {WORLDS} at a time, of some 3 s each{besides}", flush=True)
    with ProcessPoolExecutor(WORLDS + len(whole), multiprocessing.get_context("spawn")) as pool:
        shares = [pool.submit(tortured, number, *share) for number in range(WORLDS)]
        others = [pool.submit(WHOLE[kind], chosen.seed) for kind in whole]
        came = [tally for each in shares for tally in each.result().values()]
        came += [each.result() for each in others]
    sums: dict[str, Tally] = {}
    for each in came:
        sums[each.kind] = sums[each.kind] + each if each.kind in sums else each
    tallies = sorted(sums.values(), key=lambda each: each.kind)
    print(table(tallies))
    took = time.monotonic() - began
    print(f"in {took:.0f} s, by the seed {chosen.seed}")
    if chosen.write:
        write("Faults", of_faults(tallies, chosen.seed, took))
    for found in (line for each in tallies for line in each.found):
        print(f"not kept: {found}")
    return 1 if any(each.found for each in tallies) or not tallies else 0


if __name__ == "__main__":
    sys.exit(main())
