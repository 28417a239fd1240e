"""Times the backends of a case in turn, so that a slow period of a shared machine affects all of them."""

import statistics
import time
from collections.abc import Callable, Mapping

FEWEST_ROUNDS = 3


def measure(runs: Mapping[str, Callable], rounds: int, seconds: float) -> dict[str, float]:
    """Returns the median microseconds of each run.

    The first call of each run compiles and allocates, and is not counted. In every round each run is called twice, and
    the second call is timed: by then the spinning threads of other libraries are asleep and its own are awake, as in a
    model. Each round begins with a different run.

    Args:
        runs: name → function.
        rounds: largest number of rounds.
        seconds: after this time no further round begins, except the first 3.
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    end = time.perf_counter() + seconds
    for round_index in range(rounds):
        if round_index >= FEWEST_ROUNDS and time.perf_counter() > end:
            break
        first = round_index % max(len(names), 1)
        for name in names[first:] + names[:first]:
            runs[name]()
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
    return {name: 1e6 * statistics.median(values) for name, values in times.items()}
