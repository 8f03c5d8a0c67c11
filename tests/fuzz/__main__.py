"""Fuzz every target in turn until ``FUZZ_SECONDS`` (60 by default) are over; the first failure ends it."""

import os
import sys
import time

from tests.fuzz.targets import TARGETS, run_target

EXAMPLES = 200


def main() -> None:
    """Give every target its share of the time, each round with another seed."""
    share = float(os.environ.get("FUZZ_SECONDS", "60")) / len(TARGETS)
    number = int(os.environ.get("FUZZ_SEED", str(time.time_ns() % 1_000_000)))
    for name in TARGETS:
        end, rounds = time.monotonic() + share, 0
        while rounds == 0 or time.monotonic() < end:
            try:
                run_target(name, examples=EXAMPLES, number=number)
            except BaseException:
                print(f"{name}: to repeat: FUZZ_SEED={number} make fuzz", file=sys.stderr)
                raise
            number, rounds = number + 1, rounds + 1
        print(f"{name:16} {rounds * EXAMPLES:>7} inputs, nothing found", file=sys.stderr)


main()
