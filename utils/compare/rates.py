"""Learning rates of a comparison: one for all, one for each method, or several to choose from.

To be fair to each method, its learning rate is chosen in the same way: `--rates=0.0005,0.001,0.002`
trains every method at each rate, on a split of the training images (datasets.prepare makes one),
and says which rate was best for which method, as the flag that the comparison itself then takes.
"""
import argparse
import statistics
from collections.abc import Mapping
from typing import NamedTuple

from utils.flags.parser import at_least
from utils.record.provenance import describe_provenance

from .output import markdown_table
from .statistics import accuracy, deviation, hits

positive = at_least(0, float, above=True)


class Rates(NamedTuple):
    """The value of --rates."""

    trials: tuple[float, ...] = ()          # of every method
    chosen: Mapping[str, float] = {}        # {method: its --maxlr}

    @property
    def are_trials(self) -> bool:
        return bool(self.trials)

    def of(self, method: str) -> tuple[float | None, ...]:
        """The rates to train a method at, None for that of all cells."""
        return self.trials or (self.chosen.get(method),)


def rates(text: str) -> Rates:
    """The type of --rates: RATE,RATE,… or METHOD:RATE,METHOD:RATE,…"""
    parts = text.split(',')
    if ':' not in text:
        return Rates(trials=tuple(dict.fromkeys(map(positive, parts))))
    chosen = {}
    for part in parts:
        method, colon, value = part.partition(':')
        if not colon or method in chosen:
            raise argparse.ArgumentTypeError(f'{part!r} is not METHOD:RATE of one more method')
        chosen[method] = positive(value)
    return Rates(chosen=chosen)


def best(results: Mapping) -> dict[str, float]:
    """{method: the rate of the highest mean accuracy}; results: {cell: result}."""
    found = {}
    for (method, rate), accuracies in by_rate(results).items():
        reached = statistics.mean(accuracies)
        if method not in found or reached > found[method][0]:
            found[method] = reached, rate
    return {method: rate for method, (_, rate) in found.items()}


def by_rate(results: Mapping) -> dict[tuple[str, float], list[float]]:
    """{(method, rate): top-1 of each seed, in percent}"""
    grouped: dict = {}
    for cell, result in results.items():
        grouped.setdefault((cell.method, cell.rate), []).append(accuracy(hits(result)))
    return grouped


def flag_of(chosen: Mapping[str, float]) -> str:
    """The flag that gives each method its rate."""
    return '--rates=' + ','.join(f'{method}:{rate:g}' for method, rate in chosen.items())


def text(origin: Mapping[str, str], results: Mapping, images: str) -> str:
    """The text of rates.md: top-1 ± sd over seeds of each method at each rate, the best in bold.

    origin: see provenance; images: which the accuracies are of.
    """
    grouped, chosen = by_rate(results), best(results)
    tried = sorted({rate for _, rate in grouped})
    rows = [[method, *(cell_text(grouped.get((method, rate), []), rate == chosen[method])
                       for rate in tried)] for method in chosen]
    table = markdown_table(['weights', *(f'{rate:g}' for rate in tried)], rows)
    edges = [method for method, rate in chosen.items() if rate in (tried[0], tried[-1])]
    edge = (f'\nThe best rate of {", ".join(edges)} is at an edge of those tried: '
            'a further one may be better.\n') if edges else ''
    return f'''    {origin["command"]}

{describe_provenance(origin).splitlines()[-1]}

Top-1 accuracy in percent on {images} after the last epoch at each
learning rate (--maxlr): mean ± standard deviation over seeds, the best of each method in bold.

{table}
{edge}
The best rate of each method, for a comparison on images that were not looked at here:

    {flag_of(chosen)}
'''


def cell_text(accuracies: list[float], is_best: bool) -> str:
    if not accuracies:
        return ''
    mean = f'{statistics.mean(accuracies):.2f}'
    shown = f'{mean} ± {deviation(accuracies):.2f}' if len(accuracies) > 1 else mean
    return f'**{shown}**' if is_best else shown
