"""What a comparison writes: tables in Markdown and CSV, and two plots."""
import csv
import io
import math
import statistics
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from utils.record.describe import describe_provenance
from utils.system.console import one_line
from utils.system.files import write_atomically, write_text
from utils.style import drawable_text, legend_outside, method_style

from .cells import UNCENTRED
from .statistics import POWER, WIDTH, Kind, accuracy, hits

VISIBLE = 1     # point, for which the table says how much it takes to see it
ROW_HEADER = ('weights', 'inputs', 'seeds', 'top-1 ± sd', 'SE', 'top-5 ± sd', 'SE', 'epochs',
              'minutes', 'bits per weight', 'MB')
TEST_HEADER = ('inputs', 'difference of', 'seeds', 'top-1 ± sd', 'SE', 'alone right',
               "McNemar's p")
POWER_HEADER = ('inputs', 'difference of', '95 % interval', 'smallest difference seen',
                f'seeds for {VISIBLE} point', f'images for {VISIBLE} point')


def write(folder: Path, text: str, rows: list[dict], by_kind: dict[Kind, dict[int, dict]],
          title: str):
    """Write compare.md, which is `text`, compare.csv and the plots, each atomically.

    title: that of the plots, the networks and the data.
    """
    write_text(folder / 'compare.md', text)
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0].keys(), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / 'compare.csv', table.getvalue())
    plots = {'curves': plot_curves(by_kind), 'accuracy': plot_accuracy(rows, by_kind)}
    for name, figure in plots.items():
        figure.suptitle(drawable_text(title), fontsize='large', parse_math=False)
        for kind in 'png', 'svg':
            write_atomically(folder / f'{name}.{kind}',
                             lambda path: figure.savefig(path, dpi=150, format=kind))


def markdown(origin: dict[str, str], rows: list[dict], pairs: list[dict], tenCrop: bool,
             data: str, rates: Mapping[Kind, float]) -> str:
    """The text of compare.md: where it comes from, the rows of summarize, the tests of paired.

    data: the name of the images. rates: the learning rates that --tune or --rates chose.
    """
    crops = 'ten crops of every image' if tenCrop else 'the centre crop of every image'
    images = max(row['images'] for row in rows)
    tests = power = 'There is no pair to compare yet.'
    if pairs:
        tests = markdown_table(TEST_HEADER, map(test_cells, pairs))
        power = markdown_table(POWER_HEADER, map(power_cells, pairs))
    chosen = ', '.join(f'{method} ({inputs} inputs) {rate:g}'
                       for (method, inputs), rate in rates.items())
    chosen = f'\nLearning rates (--maxlr): {chosen}.\n' if chosen else ''
    return f'''{heading(origin)}{chosen}
Accuracy in percent on {images} validation images of {data} after the last epoch, on
{crops}: mean ± standard deviation over seeds, and the standard error (SE)
that the choice of the images leaves. Minutes of training per run; bits per weight in the binarized
range; size of the model with its binarized weights packed.

{markdown_table(ROW_HEADER, map(accuracy_cells, rows))}

Paired on the same images and seeds: the difference in top-1 (points, mean ± standard deviation over
seeds) and its standard error over images; for each seed on how many images the first and the second
alone were right, and the exact p of McNemar's test of these two numbers.

{tests}

What such a comparison can see, at the spread over seeds and images measured here: the 95 % interval
of the difference, for other seeds and other images (too narrow with few seeds); the smallest true
difference in top-1 (points) that it would find significant at the 5 % level in {POWER:.0%} of all
repetitions; and what it would take to see a difference of {VISIBLE} point: so many seeds on these
images, or so many images with these seeds (–: no number is enough).

{power}
'''


def heading(origin: dict[str, str]) -> str:
    """The command, and what it ran on; see provenance."""
    return f'    {origin["command"]}\n\n{describe_provenance(origin).splitlines()[-1]}\n'


def markdown_table(header, rows) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(one_line(f'| {" | ".join(row)} |') for row in lines)


def with_deviation(mean: str, deviation: float) -> str:
    return mean if math.isnan(deviation) else f'{mean} ± {deviation:.2f}'


def accuracy_cells(row: dict) -> list[str]:
    accuracies = []
    for top in ('top1', 'top5'):
        accuracies += [with_deviation(f'{row[top]:.2f}', row[f'{top}_sd']),
                       f'{row[f"{top}_se"]:.2f}']
    return [row['weights'], row['inputs'], str(row['seeds']), *accuracies, str(row['epochs']),
            f'{60 * row["hours"]:.1f}', f'{row["bits_per_weight"]:.2f}', f'{row["megabytes"]:.2f}']


def test_cells(pair: dict) -> list[str]:
    alone = ', '.join(f'{only_a} : {only_b}' for only_a, only_b in pair['alone'])
    return [pair['inputs'], f'{pair["a"]} − {pair["b"]}', str(pair['seeds']),
            with_deviation(f'{pair["difference"]:+.2f}', pair['sd']), f'{pair["se"]:.2f}', alone,
            ', '.join(f'{p:.2g}' for p in pair['p'])]


def power_cells(pair: dict) -> list[str]:
    cells, spread = [pair['inputs'], f'{pair["a"]} − {pair["b"]}'], pair['spread']
    if spread is None:
        return [*cells, 'needs two seeds', '', '', '']
    low, high = (pair['difference'] + side * WIDTH * spread.standard_error() for side in (-1, 1))
    needed = spread.seeds_for(VISIBLE), spread.images_for(VISIBLE)
    return [*cells, f'{low:+.2f} to {high:+.2f}', f'{spread.smallest_seen():.2f}',
            *(f'{n:,}' if n else '–' for n in needed)]


def style_of(method: str) -> dict[str, object]:
    """Matplotlib's: without centring, as with it but dotted, its markers hollow."""
    style = method_style(method.removesuffix(UNCENTRED))
    return style | ({'linestyle': ':', 'markerfacecolor': 'white'} if UNCENTRED in method else {})


def plot_curves(results: dict[Kind, dict[int, dict]]) -> Figure:
    """Validation accuracy per epoch: a thin line per seed, a thick one for their mean."""
    kinds = list(dict.fromkeys(inputs for _, inputs in results))
    figure = Figure(figsize=(6 * len(kinds), 4), layout='constrained')
    panels = dict(zip(kinds, figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]))
    lines = {}
    for (method, inputs), of_seeds in results.items():
        axes, style = panels[inputs], style_of(method)
        runs = [result['curve'] for result in of_seeds.values()]
        for run in runs:
            axes.plot(range(1, len(run) + 1), run, **style | {'marker': ''}, linewidth=0.6,
                      alpha=0.45)
        mean = [statistics.mean(values) for values in zip(*runs)]
        lines[method], = axes.plot(range(1, len(mean) + 1), mean, **style, linewidth=1.8,
                                   markersize=4, markevery=max(1, len(mean) // 10),
                                   label=f'{method} weights')
    for inputs, axes in panels.items():
        axes.set(xlabel='epoch', title=f'{inputs} inputs')
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[kinds[0]].set_ylabel('validation top-1, %')
    legend_outside(figure, list(lines.values()), 'lower')
    return figure


def plot_accuracy(rows: list[dict], results: dict[Kind, dict[int, dict]]) -> Figure:
    """The accuracies of summarize's rows with 95 % intervals, and those of the seeds as dots."""
    figure = Figure(figsize=(max(4.5, 1.6 + 1.1 * len(rows)), 4), layout='constrained')
    axes = figure.subplots()
    for place, row in enumerate(rows):
        style, of_seeds = style_of(row['weights']), results[row['weights'], row['inputs']]
        axes.errorbar(place, row['top1'], WIDTH * row['top1_se'], **style, capsize=5, markersize=7)
        seeds = [accuracy(hits(result)) for result in of_seeds.values()]
        axes.plot([place - 0.22] * len(seeds), seeds, '.', color=style['color'], alpha=0.6)
        axes.annotate(f'{row["top1"]:.1f}', (place, row['top1']), (8, 0),
                      textcoords='offset points', va='center')
    axes.set_xticks(range(len(rows)), [f'{row["weights"]}\n{row["inputs"]} inputs' for row in rows])
    axes.set(ylabel='top-1, % (bars: 95 % over images; dots: seeds)', xlim=(-0.5, len(rows) - 0.2))
    return figure
