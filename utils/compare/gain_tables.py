"""What utils.compare.gain writes: the measures as CSV, and their summary in Markdown."""
import csv
import itertools
from collections.abc import Iterable
from pathlib import Path

from utils.files import has_file
from utils.provenance import describe_provenance

from .output import markdown_table
from .shared import UNCENTRED

COLUMNS = {     # of gain.csv, and their types; a row is a dict of them
    'network': str, 'method': str, 'epoch': int, 'number': int, 'name': str,
    'filters': int, 'n': int,
    'K_over_n': float,          # mean over the filters, under dab's split
    'K_over_n_sd': float,       # over the filters
    'asymmetry': float,         # mean |K/n − 1/2| over the filters
    'error_dab': float, 'error_xnor': float, 'error_adabin': float,     # ‖W − W~‖²/‖W‖²
    'gain': float,              # of dab over xnor
    'squared_norm': float,      # ‖W‖² of the projected weights, which errors of layers add up by
    'flips': float,     # share of weights that changed sides in a step, mean over the last epoch
}
LARGEST = 10    # layers in the second table


def read_rows(path: Path) -> list[dict]:
    """The rows of a gain.csv; [] where the file is missing or is not one."""
    has_file(path)
    try:
        with open(path, encoding='utf-8', newline='') as file:
            return [{name: kind(row[name]) for name, kind in COLUMNS.items()}
                    for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def gain(error_dab: float, error_xnor: float) -> float:
    """The share of xnor's error that dab avoids; 0 where xnor has none."""
    return 1 - error_dab / error_xnor if error_xnor else 0.0


def network_gain(rows: Iterable[dict]) -> float:
    """The gain over all layers, of the sums of ‖W − W~‖², from their rows of one epoch."""
    sums = [(row['error_dab'] * row['squared_norm'], row['error_xnor'] * row['squared_norm'])
            for row in rows]
    return gain(*map(sum, zip(*sums)))


def markdown(origin: dict[str, str], rows: list[dict], data: str) -> str:
    """The text of gain.md: where it comes from, a table of runs and one of the largest gains.

    rows: of all runs, those of one run together. data: the name of the images.
    """
    runs = [list(run) for _, run in itertools.groupby(rows, run_of)]
    epochs = sorted({row['epoch'] for row in rows})
    summary = markdown_table(
        ['network', 'weights', 'K/n of the layers', 'asymmetry',
         'flips, %', 'largest gain of a layer, %', *(f'gain at {epoch}, %' for epoch in epochs)],
        [run_cells(run, epochs) for run in runs])
    centred = [row for row in rows if not row['method'].endswith(UNCENTRED)]
    largest = 'No run with centring is finished.'
    if centred:
        chosen = sorted(centred, key=lambda row: -row['gain'])[:LARGEST]
        largest = markdown_table(
            ['network', 'weights', 'layer', 'epoch', 'filters', 'n', 'K/n ± sd', 'asymmetry',
             'error of dab', 'of xnor', 'of adabin', 'gain, %'], [layer_cells(r) for r in chosen])
    versions = describe_provenance(origin).splitlines()[-1]
    return f'''    {origin["command"]}

{versions}

What dab would gain over xnor on the weights of networks that train on {data}, their
weights binarized by either: the share of xnor's squared error ‖W − W~‖² that dab avoids, of a layer
and (gain at an epoch; 0 is before the first step) of the whole network. K/n, the share of a
filter's weights that dab gives the larger value, from the layer with the least mean over its
filters to the one with the largest, and the mean of |K/n − 1/2| over the layers, after the last
epoch measured; flips, the share of all weights that changed sides in a step of that epoch.

{summary}

The {LARGEST} largest gains of a layer, with centring; errors are relative to ‖W‖².

{largest}
'''


def run_of(row: dict) -> tuple[str, str]:
    return row['network'], row['method']


def run_cells(run: list[dict], epochs: list[int]) -> list[str]:
    """The cells of a run, whose rows are in the order of epochs."""
    last = [row for row in run if row['epoch'] == run[-1]['epoch']]
    shares = [row['K_over_n'] for row in last]
    asymmetry = sum(row['asymmetry'] for row in last) / len(last)
    most = max(run, key=lambda row: row['gain'])
    cells = [*run_of(most), f'{min(shares):.3f} – {max(shares):.3f}', f'{asymmetry:.4f}',
             f'{100 * mean_flips(last):.3f}',
             f'{percent(most["gain"])} ({layer(most)}, epoch {most["epoch"]})']
    for epoch in epochs:
        rows = [row for row in run if row['epoch'] == epoch]
        cells.append(percent(network_gain(rows)) if rows else '')
    return cells


def mean_flips(rows: list[dict]) -> float:
    """The share of all weights that changed sides in a step, from the rows of layers."""
    weights = [row['filters'] * row['n'] for row in rows]
    return sum(row['flips'] * count for row, count in zip(rows, weights)) / sum(weights)


def layer_cells(row: dict) -> list[str]:
    return [row['network'], row['method'], layer(row), str(row['epoch']), str(row['filters']),
            str(row['n']), f'{row["K_over_n"]:.3f} ± {row["K_over_n_sd"]:.3f}',
            f'{row["asymmetry"]:.4f}',
            *(f'{row[f"error_{method}"]:.4f}' for method in ('dab', 'xnor', 'adabin')),
            percent(row['gain'])]


def layer(row: dict) -> str:
    return f'{row["number"]} {row["name"]}'


def percent(share: float) -> str:
    return f'{100 * share:.2f}'
