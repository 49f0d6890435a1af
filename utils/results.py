"""From the results of finished runs to rows, paired tests and pictures.

A result is a dict: 'ranks' (for each validation image, how many classes the network finds likelier than
the true one), 'curve' (validation top-1 per epoch, in percent), 'epoch', 'seconds' of training,
'bits_per_weight' and 'bytes' of the network. Results come as {(method, inputs): {seed: result}}.
"""
import math
import statistics

from matplotlib.figure import Figure

from utils.figures import legend_above, look


def standard_error(values):
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def summarize(method, inputs, results):
    """The row of a method: mean and deviation over seeds in percent; the standard error is over images.

    An image counts with its share of right answers over the seeds, so seeds do not multiply images.
    """
    row = {'weights': method, 'inputs': inputs, 'seeds': len(results)}
    for top in (1, 5):
        accuracies = [100 * statistics.mean(rank < top for rank in result['ranks']) for result in results.values()]
        per_image = [statistics.mean(rank < top for rank in ranks)
                     for ranks in zip(*(result['ranks'] for result in results.values()), strict=True)]
        row |= {f'top{top}': statistics.mean(accuracies),
                f'top{top}_sd': statistics.stdev(accuracies) if len(accuracies) > 1 else math.nan,
                f'top{top}_se': 100 * standard_error(per_image)}
    some = list(results.values())
    return row | {'images': len(some[0]['ranks']), 'epochs': max(result['epoch'] for result in some),
                  'hours': statistics.mean(result['seconds'] for result in some) / 3600,
                  'bits_per_weight': some[0]['bits_per_weight'], 'megabytes': some[0]['bytes'] / 1e6}


def mcnemar(only_a, only_b):
    """Two-sided exact p of McNemar's test: of the images that one of two methods alone got right, each
    is as likely one's as the other's (McNemar, Psychometrika 1947).
    """
    n = only_a + only_b

    def probability(k):
        return math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
    return min(1.0, 2 * math.fsum(map(probability, range(min(only_a, only_b) + 1))))


def paired(a, b, results):
    """The paired comparison of the kinds a and b on the images of the seeds that both have, or None."""
    seeds = sorted(results[a].keys() & results[b].keys())
    if not seeds:
        return None
    right_a, right_b = ([[rank == 0 for rank in results[kind][seed]['ranks']] for seed in seeds]
                        for kind in (a, b))
    runs = [list(zip(run_a, run_b, strict=True)) for run_a, run_b in zip(right_a, right_b)]
    alone = [(pairs.count((True, False)), pairs.count((False, True))) for pairs in runs]
    of_seeds = [100 * (only_a - only_b) / len(pairs) for (only_a, only_b), pairs in zip(alone, runs)]
    per_image = [statistics.mean(x - y for x, y in image) for image in zip(*runs, strict=True)]
    return {'inputs': a[1], 'a': a[0], 'b': b[0], 'seeds': len(seeds), 'difference': statistics.mean(of_seeds),
            'se': 100 * standard_error(per_image),
            'sd': statistics.stdev(of_seeds) if len(seeds) > 1 else math.nan,
            'alone': alone, 'p': [mcnemar(*numbers) for numbers in alone]}


def table(header, rows):
    """A table in Markdown."""
    return '\n'.join(f'| {" | ".join(row)} |' for row in [header, ['---'] * len(header), *rows])


def markdown(command, rows, pairs, tenCrop):
    """compare.md: what was run, the rows of summarize, the tests of paired."""
    crops = 'ten crops of every image' if tenCrop else 'the centre crop of every image'
    accuracy = [[row['weights'], row['inputs'], str(row['seeds']),
                 *(cell for top in (1, 5) for cell in (
                     f'{row[f"top{top}"]:.2f}' + (f' ± {row[f"top{top}_sd"]:.2f}' if row['seeds'] > 1 else ''),
                     f'{row[f"top{top}_se"]:.2f}')),
                 str(row['epochs']), f'{60 * row["hours"]:.1f}', f'{row["bits_per_weight"]:.2f}',
                 f'{row["megabytes"]:.2f}'] for row in rows]
    tests = [[pair['inputs'], f'{pair["a"]} − {pair["b"]}', str(pair['seeds']),
              f'{pair["difference"]:+.2f}' + (f' ± {pair["sd"]:.2f}' if pair['seeds'] > 1 else ''),
              f'{pair["se"]:.2f}', ', '.join(f'{only_a} : {only_b}' for only_a, only_b in pair['alone']),
              ', '.join(f'{p:.2g}' for p in pair['p'])] for pair in pairs]
    images = max(row['images'] for row in rows)
    return f'''    {command}

Accuracy in percent on {images} validation images after the last epoch, on {crops}: mean ± standard deviation over
seeds, and the standard error (SE) that the choice of the images leaves. Minutes of training per run; bits per weight
in the binarized range; size of the model with its binarized weights packed.

{table(['weights', 'inputs', 'seeds', 'top-1 ± sd', 'SE', 'top-5 ± sd', 'SE', 'epochs', 'minutes', 'bits per weight',
        'MB'], accuracy)}

Paired on the same images and seeds: the difference in top-1 (points, mean ± standard deviation over seeds) and its
standard error over images; for each seed on how many images the first and the second alone were right, and the exact p
of McNemar's test of these two numbers.

{table(['inputs', 'difference of', 'seeds', 'top-1 ± sd', 'SE', 'alone right', "McNemar's p"], tests)
 if tests else 'There is no pair to compare yet.'}
'''


def draw_curves(results):
    """Validation accuracy per epoch: a thin line per seed, a thick one for their mean."""
    kinds = list(dict.fromkeys(inputs for _, inputs in results))
    figure = Figure(figsize=(6 * len(kinds), 4), layout='constrained')
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0], kinds):
        for (method, inputs), of_seeds in results.items():
            if inputs != kind:
                continue
            runs = [result['curve'] for result in of_seeds.values()]
            for run in runs:
                axes.plot(range(1, len(run) + 1), run, **look(method) | {'marker': ''}, linewidth=0.6, alpha=0.45)
            mean = [statistics.mean(values) for values in zip(*runs)]
            axes.plot(range(1, len(mean) + 1), mean, **look(method), linewidth=1.8, markersize=4,
                      markevery=max(1, len(mean) // 10), label=f'{method} weights')
        axes.set(xlabel='epoch', title=f'{kind} inputs')
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.axes[0].set_ylabel('validation top-1, %')
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_legend_handles_labels()[0]}
    legend_above(figure, list(lines.values()))
    return figure


def draw_accuracy(rows):
    """The accuracies of summarize's rows with 95 % intervals."""
    figure = Figure(figsize=(1.6 + 1.1 * len(rows), 4), layout='constrained')
    axes = figure.subplots()
    for place, row in enumerate(rows):
        axes.errorbar(place, row['top1'], 1.96 * row['top1_se'], **look(row['weights']), capsize=5, markersize=7)
        axes.annotate(f'{row["top1"]:.1f}', (place, row['top1']), (8, 0), textcoords='offset points', va='center')
    axes.set_xticks(range(len(rows)), [f'{row["weights"]}\n{row["inputs"]} inputs' for row in rows])
    axes.set(ylabel='top-1, % (bars: 95 % over images)', xlim=(-0.5, len(rows) - 0.2))
    return figure
