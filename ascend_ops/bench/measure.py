"""Times the backends of a case in turn, so that a slow spell of a shared machine meets all of them."""

import statistics
import time
from collections.abc import Callable, Mapping

FEWEST_ROUNDS = 3


def measure(runs: Mapping[str, Callable], rounds: int, seconds: float) -> dict[str, float]:
    """Median microseconds of each run.

    The first run of each, which compiles and allocates, is not counted. In every round each runs twice, and the second
    run is timed: by then the threads that another library left spinning are asleep, and its own are awake, as they are
    in a model. Each round begins with another one.

    Args:
        rounds: how many.
        seconds: stops earlier once so many have passed, but not before 3 rounds.
    """
    names, times = list(runs), {name: [] for name in runs}
    for run in runs.values():
        run()
    end = time.perf_counter() + seconds
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.perf_counter() > end:
            break
        first = number % max(len(names), 1)
        for name in names[first:] + names[:first]:
            runs[name]()
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
    return {name: 1e6 * statistics.median(values) for name, values in times.items()}
