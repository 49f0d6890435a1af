"""Benchmarks: what binarization costs, against the real-valued network, in one interleaved run.

    python3 -m utils.bench step                              a training step of three networks
    python3 -m utils.bench step --model_def alexnetwbin mobilenet           of others, from 2 to the last
    python3 -m utils.bench flags                             the same under --amp, --compile, --channelsLast
    python3 -m utils.bench eval                              a validation pass with ten crops
    python3 -m utils.bench data --data_dir=DIR               the sketch training transform
    python3 -m utils.bench packed                            packed networks against float32 ones

Prints medians of the rounds, their ratio (ours / baseline) and the quartiles of the ratio; with
--json, a list of {case, baseline_s, ours_s, ratio} on the last line; of `packed` {case, batch, threads, float_s,
packed_s, speedup}.
"""
import argparse
import json
import statistics

import torch
from torch.nn import functional as F
from torch.nn.utils import parametrize

import datasets
import models
from utils import binarize, train
from utils.measure import fresh, interleave, machine, peak_megabytes
from utils.packed import bench as packed
from utils.packed.network import channels_last

NETWORKS = [    # name, batch size, channels, binStart, binEnd
    ('sketchanetwbin', 32, 1, 2, 7),
    ('resnetwbin18', 16, 1, 2, 100),
    ('bincifar', 64, 3, 2, 7),
]


def row(case, baseline, ours):
    """Prints the line of a case; returns its JSON object."""
    ratios = [a / b for a, b in zip(ours, baseline)]
    low, _, high = statistics.quantiles(ratios, n=4)
    seconds = statistics.median(baseline), statistics.median(ours)
    ratio = seconds[1] / seconds[0]
    print(f'{case:44} {seconds[0] * 1e3:10.2f} {seconds[1] * 1e3:10.2f} {ratio:8.3f}   {low:.3f} – {high:.3f}',
          flush=True)
    return {'case': case, 'baseline_s': seconds[0], 'ours_s': seconds[1], 'ratio': ratio}


def network(name, channels, binStart, binEnd, search):
    """The real-valued network (search None) or the binarized one, from the same initialization."""
    torch.manual_seed(0)
    model = models.build(name, 250, channels=channels)
    return binarize.wrap(model, binStart, binEnd, search=search) if search else model


def stepper(name, batch, channels, binStart, binEnd, search, amp=None, layout=torch.Tensor.contiguous, compiled=False):
    """A function that does one training step with Adam on fixed random images."""
    model = network(name, channels, binStart, binEnd, search).train()
    images = layout(torch.randn(batch, channels, *[models.default_inpsize(name)] * 2))
    target = torch.arange(batch) % 250
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    forward = torch.compile(model) if compiled else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        with train.autocast(torch.device('cpu'), amp):
            log_probs = forward(images).float()
        loss = F.nll_loss(log_probs, target)
        loss.backward()
        optimizer.step()
    return step


def copy_bandwidth():
    """Bytes per second that a large copy reads and writes."""
    source = torch.zeros(2 ** 25)
    target = torch.zeros_like(source)
    seconds, _ = interleave(lambda: target.copy_(source), lambda: None, rounds=9)
    return 2 * source.nbytes / statistics.median(seconds)


def peak_memory(*arguments):
    """Megabytes of peak resident memory of a fresh process that does three training steps."""
    step = stepper(*arguments)
    for _ in range(3):
        step()
    return peak_megabytes()


def bench_step(options):
    bandwidth = copy_bandwidth()
    rows = []
    for case in networks(options):
        baseline, ours = (stepper(*case, search) for search in (None, options.binSearch))
        title = f'step {case[0]} batch {case[1]} convolutions {case[3]}-{case[4]}'
        rows.append(row(title, *interleave(baseline, ours, options.rounds)))
        del baseline, ours
        weights, _ = binarize.weight_bits(network(*case[:1], *case[2:], 'exact'))
        # Forward: latent weights read and written, W~ written. Backward: two tensors read, one written.
        floor = 6 * 4 * weights / bandwidth
        real, binary = (fresh(peak_memory, *case, search) for search in (None, options.binSearch))
        print(f'  {weights / 1e6:.1f} M binarized weights; moving them takes at least {floor * 1e3:.1f} ms at '
              f'{bandwidth / 1e9:.1f} GB/s; peak memory {real:.0f} -> {binary:.0f} MB, ratio {binary / real:.3f}')
        rows.append({'case': title.replace('step', 'peak MB'), 'baseline_s': real, 'ours_s': binary,
                     'ratio': binary / real})
    return rows


def bench_flags(options):
    """The binarized step under --amp, --channelsLast, --compile against the one without."""
    rows = []
    for flag, settings in {'--amp=bfloat16': {'amp': 'bfloat16'}, '--compile': {'compiled': True},
                           '--channelsLast': {'layout': channels_last}}.items():
        for case in networks(options):
            functions = (stepper(*case, options.binSearch, **chosen) for chosen in ({}, settings))
            rows.append(row(f'step {case[0]} batch {case[1]} {flag}', *interleave(*functions, options.rounds)))
    return rows


def bench_eval(options):
    rows = []
    for case in networks(options):
        name, _, channels, *_ = case
        crops = torch.randn(2, 10, channels, *[models.default_inpsize(name)] * 2)
        real, binary = (network(name, *case[2:], search).eval() for search in (None, options.binSearch))

        def validation(model):
            with torch.no_grad(), parametrize.cached():
                for _ in range(2):
                    train.predict(model, crops)

        title = f'eval {name} 2 batches of 2 × 10 crops'
        rows.append(row(title, *interleave(
            lambda: validation(real), lambda: validation(binary), options.rounds)))
    return rows


def bench_data(options):
    plain, ours = (datasets.load('tuberlin', options.data_dir, options.inpsize, plain=plain).train
                   for plain in (True, False))
    indices = torch.randperm(len(plain), generator=torch.Generator().manual_seed(0))[:options.images].tolist()

    def reader(images):
        return lambda: [images[index] for index in indices]

    torch.set_num_threads(1)    # as in a loading worker
    rows = [row(f'data {len(indices)} sketches at {options.inpsize}, one process',
                *interleave(reader(plain), reader(ours), options.rounds))]
    print(f'  {len(indices) / rows[0]["baseline_s"]:.0f} -> {len(indices) / rows[0]["ours_s"]:.0f} images/s')
    return rows


def networks(options):
    if options.model_def is None:
        return NETWORKS
    return [(name, options.batch_size, options.channels, options.binStart, options.binEnd)
            for name in options.model_def]


def main():
    parser = argparse.ArgumentParser('python3 -m utils.bench', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('step', 'flags', 'data', 'eval', 'packed'))
    parser.add_argument('--model_def', choices=models.names(), metavar='NAME', nargs='+')
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--channels', type=int, default=1)
    parser.add_argument('--binStart', type=int, default=2)
    parser.add_argument('--binEnd', type=int, default=100)
    parser.add_argument('--binSearch', choices=('fast', 'exact'), default='fast')
    parser.add_argument('--data_dir', default='data/tuberlin')
    parser.add_argument('--inpsize', type=int, default=225)
    parser.add_argument('--images', type=int, default=200)
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2], help='of packed')
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--json', action='store_true')
    options = parser.parse_args()
    print(machine())
    if options.what != 'packed':
        print(f'{"case":44} {"baseline ms":>10} {"ours ms":>10} {"ratio":>8}   quartiles')
    try:
        rows = {'step': bench_step, 'flags': bench_flags, 'data': bench_data, 'eval': bench_eval,
                'packed': packed.bench}[options.what](options)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if options.json:
        print(json.dumps(rows))


if __name__ == '__main__':
    main()
