"""Runs random networks and prints those that fail: `make fuzz N=2000`, `make fuzz SEED=123`."""

import argparse
import contextlib
import itertools
import signal
import sys
import time
from collections.abc import Iterator

import torch
from tqdm import tqdm

from . import checks, networks


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="how many networks, default %(default)s")
    parser.add_argument("--start", type=int, default=0, help="seed of the first")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--minutes", type=float, help="stop after this time, whatever the count")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.seed is not None:
        seeds = [arguments.seed]
    elif arguments.minutes is not None:
        seeds = itertools.count(arguments.start)
    else:
        seeds = range(arguments.start, arguments.start + arguments.count)
    failed, run = [], 0
    end = time.monotonic() + 60 * arguments.minutes if arguments.minutes is not None else float("inf")
    for seed in tqdm(seeds, desc="networks", unit="network"):
        if time.monotonic() > end:
            break
        run += 1
        network = networks.build(seed)
        with limit(60):
            wrong = checks.failures(network)
        if wrong:
            failed.append(seed)
            tqdm.write(report(network, wrong))
    print(f"{run - len(failed)} of {run} networks are right" + (f"; wrong: {failed}" if failed else ""))
    return bool(failed)


@contextlib.contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in whatever takes longer, which then counts as failed."""

    def stop(*_) -> None:
        signal.alarm(seconds)
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def report(network: networks.Network, wrong: dict[str, str]) -> str:
    lines = [f"  {name}: {error}" for name, error in wrong.items()]
    return "\n".join([f"seed {network.seed}: {network}", *lines, f"  again: make fuzz SEED={network.seed}", ""])


if __name__ == "__main__":
    sys.exit(main())
