"""Steps, validation and the measures of a run, against values computed by hand."""
import contextlib
import math
import os
import threading
from functools import partial

import pytest
import torch
from conftest import flags_of
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, DistributedSampler

import datasets
import models
from models.blocks import Sign, Units, network
from utils import binarize, experiment
from utils import evaluate as activations
from utils.compare import cells, statistics
from utils.evaluate import confusion
from utils.record.describe import arithmetic, describe, describe_data, inputs_are_binary
from utils.flags import resolve
from utils.record import run as record
from utils.record.progress import Progress
from utils.system.errors import RunError
from utils.training import checkpoint, loaders, loop, parallel, predictions
from utils.training import epoch as train

CPU = torch.device('cpu')


def quiet(loader):
    return Progress('test', len(loader))


FAMILIES = sorted({family[-1] for family in map(models.family, models.names())})


@pytest.mark.parametrize('name', FAMILIES)
def test_every_model_trains_a_binarized_step(name):
    torch.manual_seed(0)
    inpsize = small_inpsize(name)
    model = binarize.wrap(models.build(name, 5, channels=1, inpsize=inpsize), 2, 100)
    latents = {
        layer: conv.parametrizations.weight.original for layer, conv in binarize.binarized(model)}
    images, target = torch.randn(4, 1, inpsize, inpsize), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    loss = F.nll_loss(model(images), target)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    projected = {layer: latent.detach().clone() for layer, latent in latents.items()}
    optimizer.step()
    # Behind two binarized layers a ReLU may be dead for four images, but not for most layers.
    moved = [not torch.equal(latents[layer], projected[layer]) for layer in latents]
    assert sum(moved) >= 0.9 * len(moved)
    assert all(latent.abs().max() <= 1 for latent in projected.values())


def small_inpsize(name):
    return next(size for size in (33, 63, 81) if size >= models._variants[name].smallest)


class Table(nn.Module):
    """Log-probabilities looked up by the value of an image's only pixel."""

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.tensor(rows).log()

    def forward(self, x):
        return self.rows[x.flatten().long()]


def test_ten_crops_average_the_log_probabilities_before_loss_and_accuracy():
    model = Table([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]])
    crops = torch.tensor([[0.] * 4 + [1.] * 6, [2.] * 10]).view(2, 10, 1, 1, 1)
    target = torch.tensor([0, 2])
    metrics = train.validate(model, [(crops, target)], CPU, quiet([0]))
    by_hand = torch.stack([0.4 * model.rows[0] + 0.6 * model.rows[1], model.rows[2]])
    assert metrics['loss'] == pytest.approx(-(by_hand[0, 0] + by_hand[1, 2]).item() / 2)
    assert by_hand[0].argmax() == 1 and metrics['top1'] == 50
    assert metrics['top5'] == 100 and metrics['images'] == 2


def test_metrics_are_weighted_by_images_and_top5_counts_five():
    rows = torch.eye(8) * 0.5 + 0.01 * torch.arange(1,
                                                    9)  # beside the diagonal, likelier to the right
    model = Table((rows / rows.sum(1, keepdim=True)).tolist())
    batches = [(torch.tensor([0., 1, 2]).view(3, 1, 1, 1), torch.tensor([0, 7, 0])),
               (torch.tensor([3.]).view(1, 1, 1, 1), torch.tensor([3]))]
    metrics = train.validate(model, batches, CPU, quiet(batches))
    assert metrics['top1'] == 50 and metrics['top5'] == 75
    loss = -sum(model.rows[image, label].item()
                for image, label in ((0, 0), (1, 7), (2, 0), (3, 3))) / 4
    assert metrics['loss'] == pytest.approx(loss, rel=1e-6)


def many_ties(images=400, classes=9):
    """Log-probabilities with few different values, as after ReLU, and true classes."""
    chance = torch.Generator().manual_seed(0)
    outputs = torch.randint(-3, 3, (images, classes), generator=chance).clamp(min=0).float()
    return outputs.log_softmax(1), torch.randint(classes, (images,), generator=chance)


def test_ties_are_broken_by_class_number():
    """Against plain Python: likelier classes first, of equal ones the lower number."""
    log_probs, target = many_ties()
    orders = [
        sorted(range(9), key=lambda label: (-row[label], label)) for row in log_probs.tolist()]
    expected = [order.index(label) for order, label in zip(orders, target.tolist())]
    ranks = predictions.true_class_ranks(log_probs, target)
    assert ranks.tolist() == expected and len({*expected}) == 9
    labels, probabilities = predictions.likeliest(log_probs)
    assert labels.tolist() == [order[:5] for order in orders]
    assert labels[:, 0].equal(log_probs.argmax(1))
    assert probabilities.equal(log_probs.softmax(1).gather(1, labels))
    for top in range(1, 6):
        assert (ranks < top).equal((labels[:, :top] == target[:, None]).any(1))
    assert predictions.likeliest(log_probs[:, :3])[0].shape == (400, 3)


def test_everything_counts_the_same_hits_and_a_dead_network_has_chance():
    """Ties as right would give a dead network 100 %; 3 images of each of 40 classes."""
    class Outputs(nn.Module):
        def forward(self, images):
            return images.flatten(1)
    dead = torch.zeros(120, 40).log_softmax(1), torch.arange(120) % 40
    for (log_probs, target), exact in (dead, (100 / 40, 500 / 40)), (many_ties(), None):
        batches = [(log_probs[rows][..., None, None], target[rows])
                   for rows in (slice(0, 7), slice(7, None))]
        observed = predictions.Predictions()
        metrics = train.validate(Outputs(), batches, CPU, quiet(batches), observe=observed.observe)
        ranks = {'ranks': cells.validation_ranks(Outputs(), batches, CPU, 'off', 'test')}
        labels, likeliest, _ = observed.gather()
        counts = confusion(labels, likeliest[:, 0], log_probs.size(1))
        top1, top5 = (statistics.accuracy(statistics.hits(ranks, top)) for top in (1, 5))
        assert metrics['top1'] == top1 == 100 * counts.diagonal().sum() / len(target)
        assert metrics['top5'] == top5 == 100 * (likeliest == target[:,
                                                                     None]).any(1).double().mean()
        assert exact is None or (top1, top5) == exact


def test_not_a_number_is_never_a_hit():
    log_probs, target = torch.eye(3).log_softmax(1), torch.arange(3)
    log_probs[0], log_probs[1, 2] = math.nan, math.nan
    meter = predictions.Meter(CPU)
    meter.update(log_probs, torch.tensor(0.), target)
    assert meter.read()['top1'] == meter.read()['top5'] == pytest.approx(100 / 3)

    class Broken(nn.Module):
        def forward(self, images):
            return log_probs
    with pytest.raises(RunError, match='NaN'):
        cells.validation_ranks(Broken(), [(torch.zeros(3, 1, 1, 1), target)], CPU, 'off', 'test')


def test_validation_binarizes_every_weight_once(monkeypatch):
    model = binarize.wrap(models.build('smallwbin', 3, channels=1, inpsize=32), 2, 3)
    calls = []
    forward = binarize.Binarization.forward
    monkeypatch.setattr(binarize.Binarization, 'forward',
                        lambda self, w: calls.append(1) or forward(self, w))
    batches = [(torch.randn(2, 1, 32, 32), torch.tensor([0, 1]))] * 3
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train.validate(model, batches, CPU, quiet(batches))
    assert len(calls) == 2 and not parametrize._cache_enabled
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_epoch_that_ends_in_nan_or_an_infinite_weight_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2), nn.LogSoftmax(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.full((2, 1, 1, 1), math.nan), torch.tensor([0, 1]))]
    with pytest.raises(FloatingPointError, match='NaN'):
        train.train_epoch(model, batches, optimizer, CPU, quiet(batches), printfreq=10)
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(1, 2), Sign(), nn.Linear(2, 2), nn.LogSoftmax(1))
    with torch.no_grad():
        hidden[1].weight.fill_(math.nan)
    optimizer = torch.optim.SGD(hidden.parameters(), lr=0.1)
    with pytest.raises(FloatingPointError, match='weight'):
        train.train_epoch(hidden, [(torch.ones(2, 1, 1, 1), torch.tensor([0, 1]))], optimizer, CPU,
                          quiet([0]), 10)


def orders_of(seed, rank, monkeypatch, processes=2, epochs=8):
    """The order of 30 images and the first random number of dropout, in each epoch of a rank."""
    monkeypatch.setattr(parallel, 'rank', lambda: rank)
    monkeypatch.setattr(parallel, 'processes', lambda: processes)
    data = datasets.load('doodles', '', 33, seed=seed)
    data.train.images = range(30)
    loader, _, _ = loaders.make_loaders(data, CPU, 'workers', 0, 4, 4, seed)
    found = []
    for epoch in range(epochs):
        loop.start_epoch(loader, epoch, seed)
        found.append((tuple(loader.sampler), torch.rand(()).item()))
    return found


def test_seeds_share_no_order_and_no_dropout(monkeypatch):
    """Nor in other epochs; all processes agree, and resuming does."""
    runs = [orders_of(seed, 1, monkeypatch) for seed in range(4)]
    orders, drawn = (sum(([epoch[what] for epoch in run] for run in runs), []) for what in (0, 1))
    assert len({*orders}) == len({*drawn}) == 4 * 8
    for ours, theirs in zip(orders_of(2, 0, monkeypatch), runs[2]):
        assert sorted(ours[0] + theirs[0]) == [*range(30)]
    assert orders_of(2, 1, monkeypatch) == runs[2]
    starts = sorted(loaders.mixed(seed) % 2 ** 32
                    for seed in range(100))  # of which PyTorch's CPU generator takes so many bits
    assert min(after - before for before, after in zip(starts, starts[1:])) > 10000


def test_sign_losses():
    x = torch.tensor([0.5, -2.0, 0.0, -0.25])
    squares = [0.25, 1.0, 1.0, 0.5625]
    rmse = math.sqrt(sum(squares) / 4)
    root_mean_square = math.sqrt((0.25 + 4 + 0.0625) / 4)
    one_minus_square = (0.75 + 0 + 1 + 0.9375) / 4
    assert activations.sign_losses(x).tolist() == pytest.approx([
        rmse, rmse / root_mean_square, one_minus_square])


def test_binarization_losses_are_those_of_the_inputs_of_the_signs():
    class Scale(nn.Module):
        def forward(self, x):
            return x * 0.5
    model = nn.Sequential(Scale(), Sign(), Scale(), Sign(), nn.Flatten())
    batches = [(torch.full((2, 1, 2, 2), 1.0), torch.zeros(2)),
               (torch.full((1, 1, 2, 2), 2.0), torch.zeros(1))]
    losses = activations.binarization_losses(model, batches, CPU, quiet(batches))
    assert losses['1'] == pytest.approx([0.5 * 2 / 3, 2 / 3, 0.75 * 2 / 3])   # x is 0.5, 0.5 and 1
    assert losses['3'] == pytest.approx([0.5, 1, 0.75])                        # x is 0.5
    assert not model[1]._forward_pre_hooks


def test_the_images_of_unequal_shares():
    dataset = list(range(17))
    sampler = DistributedSampler(dataset, 2, 0)
    loader = DataLoader(dataset, 4, sampler=sampler, drop_last=True)
    assert describe_data(loader, 9, 3, 2) == (
        'data: 17 training images (1 of them twice in every epoch, for equal shares of the '
        'processes; 2 of them left '
        'out of every epoch: too few for a last batch), 9 validation images, 3 classes')


def test_the_table_of_convolutions():
    model = binarize.wrap(models.build('sketchanethybrid', 3, channels=1, inpsize=81), 2, 7)
    assert [
        number for number, binary in inputs_are_binary(model, torch.randn(1, 1, 81, 81)).items()
        if binary] == [2, 3, 4, 5]
    assert model.training
    table = describe(model, 1, 81, CPU)
    assert '6     classifier.conv6  512×256×1×1  binarized  real' in table


# What a step and an epoch wait for

class NoSynchronization(TorchDispatchMode):
    """Raises where an operator would wait for a GPU, but for `steps`, Adam's, on the CPU."""

    WAITING = {
        '_local_scalar_dense', 'nonzero', 'is_nonzero', 'masked_select', 'equal', 'unique_dim',
        '_unique2', 'unique_consecutive', 'bincount'}

    def __init__(self, steps):
        super().__init__()
        self.steps = {step.data_ptr() for step in steps}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        by_mask = name.startswith('index') and any(
            isinstance(item, torch.Tensor) and item.dtype == torch.bool
            for arg in args if isinstance(arg, (list, tuple)) for item in arg)
        if (name in self.WAITING or by_mask) and args[0].data_ptr() not in self.steps:
            raise AssertionError(f'{name} waits for the device')
        return operator(*args, **kwargs or {})


@contextlib.contextmanager
def no_synchronization(optimizer):
    def waits(name):
        def method(*_, **__):
            raise AssertionError(f'{name} waits for the device')
        return method

    with pytest.MonkeyPatch.context() as patched, NoSynchronization(
            s['step'] for s in optimizer.state.values()):
        for name in ('cpu', 'numpy', 'tolist', '__array__'):        # on the CPU no operators
            patched.setattr(torch.Tensor, name, waits(name))
        yield


def train_watched(model, inpsize):
    """train_epoch, whose second step must not wait."""
    optimizer = torch.optim.Adam(model.parameters())
    batch = torch.randn(3, 1, inpsize, inpsize), torch.tensor([0, 1, 2])

    def batches():
        yield batch
        with no_synchronization(optimizer):
            yield batch
    return train.train_epoch(model, batches(), optimizer, CPU, quiet([0, 0]), printfreq=10)


@pytest.mark.parametrize('name, inpsize, method', [
    ('smallfbin', 32, 'dab'), ('smallfbin', 32, 'xnor'), ('resnetfbin18', 33, 'dab')])
def test_a_step_waits_for_nothing(name, inpsize, method):
    """search='exact' is plain PyTorch, as on a GPU without Triton."""
    model = binarize.wrap(models.build(name, 3, channels=1, inpsize=inpsize), 2, 10, method,
                          'exact')
    assert train_watched(model, inpsize)['images'] == 6


@pytest.mark.parametrize('wait', [
    lambda x: x.item(), lambda x: x.tolist(), lambda x: x.nonzero(), lambda x: x.cpu(),
    lambda x: x.numpy(), bool, float, lambda x: x[x > 0].sum(), lambda x: x.masked_select(x > 0),
    lambda x: x[None].index_put_([x[None] > 0], x)])
def test_a_step_that_waits_is_noticed(wait):
    class Waiting(nn.Linear):
        def forward(self, x):
            wait(x.detach().sum())
            return super().forward(x.flatten(1)).log_softmax(1)
    with pytest.raises(AssertionError, match='waits for the device'):
        train_watched(Waiting(4, 3), 2)


@pytest.fixture
def run(tmp_path):
    origin = dict.fromkeys(('command', 'date', 'processes', 'commit', 'python', 'torch', 'device'),
                           '')
    with record.Run(tmp_path / 'run', {'pretrained_file': None}, origin) as run:
        yield run


def saved(run, monkeypatch, epoch, tensor, before=lambda: None):
    """Save a number in a text as a checkpoint, whose writing begins with before()."""
    def write(path, stored):
        before()
        path.write_text(str(stored['model']['w'].item()))
    monkeypatch.setattr(record, 'write_checkpoint', write)
    run.save({'epoch': epoch, 'model': {'w': tensor}}, is_best=epoch == 1)


def test_training_goes_on_while_its_checkpoint_is_written(run, monkeypatch):
    tensor, trained_on = torch.tensor(1.0), threading.Event()
    saved(run, monkeypatch, 1, tensor, lambda: trained_on.wait(30))
    tensor.fill_(2)
    assert run.saved == 0 and not list(run.folder.glob('*.tar'))
    trained_on.set()
    saved(run, monkeypatch, 2, tensor)      # waits for the first
    assert run.saved >= 1
    run.finish()
    assert run.saved == 2
    assert [(run.folder / name).read_text() for name in checkpoint.CHECKPOINTS] == ['2.0', '1.0']


@pytest.mark.parametrize('wait', [record.Run.finish, lambda run: run.save({'epoch': 2}, False)])
def test_a_checkpoint_that_cannot_be_written_ends_training(run, monkeypatch, wait):
    def full():
        raise RunError('No space left on device')
    saved(run, monkeypatch, 1, torch.tensor(1.0), full)
    with pytest.raises(RunError, match='No space'):
        wait(run)
    assert run.saved == 0
    run.finish()        # says it once


def test_a_snapshot_is_what_the_checkpoint_would_be(tmp_path):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 2, 5, 5)).sum().backward()
    optimizer.step()
    state = {'model': model.state_dict(), 'optimizer': optimizer.state_dict(), 'epoch': 3}
    for name, stored in (('a', state), ('b', checkpoint.on_cpu(state))):
        torch.save(stored, tmp_path / 'checkpoint')
        (tmp_path / 'checkpoint').rename(tmp_path / name)
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_the_arithmetic_is_said(monkeypatch):
    assert arithmetic(CPU, 'off', 'off', True) == 'arithmetic: float32, channels-last activations'
    gpu, capability = torch.device('cuda', 0), (8, 0)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)
    assert arithmetic(gpu, 'bfloat16', 'off', False) == (
        'arithmetic: bfloat16 under autocast, weights in float32, validation in float32, '
        'convolutions of float32 in TF32, matrix products of '
        'float32 in float32, cuDNN benchmark on, channels-first activations')
    assert 'validation in bfloat16' in arithmetic(gpu, 'bfloat16', 'bfloat16', False)
    capability = (7, 5)
    assert 'TF32' not in arithmetic(gpu, 'off', 'off', False)


# Which arithmetic runs

GPU = torch.device('cuda', 0)


@pytest.mark.parametrize('arguments, device, channels_last',
                         [([], CPU, False), ([], GPU, True), ([], torch.device('mps'), False),
                          (['--amp=bfloat16'], torch.device('mps'), True),
                          (['--amp=bfloat16'], CPU, False), (['--channelsLast'], CPU, True),
                          (['--no-channelsLast'], GPU, False)])
@pytest.mark.parametrize('capability', ['AVX512', 'AVX2', 'DEFAULT'])
def test_channels_last_depends_on_the_device_not_on_the_processor(arguments, device, channels_last,
                                                                  capability, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    flags = resolve.complete(flags_of(*arguments), ['a', 'b'], 1, device)
    assert flags.channelsLast is channels_last
    resumed = resolve.complete(flags, ['a', 'b'], 1, CPU)
    assert resumed.channelsLast is channels_last  # what the run was trained with, on any device


@pytest.fixture
def step(sketch_folder, monkeypatch):
    """The gradient and the statistics of BatchNorm of one step under some flags.

    In a network without ReLU and maxima, whose gradients rounding can move far, on maps as
    large as those of published runs.
    """
    monkeypatch.setattr(models, '_variants', dict(models._variants))

    @models.register(inpsize=128, variants={'smooth': {}})
    def build(nClasses, channels, inpsize):
        unit = Units(batchnorm=partial(nn.BatchNorm2d, momentum=1.0))
        units = [
            unit(*arguments, relu=False)
            for arguments in ((channels, 8, 5), (8, 16, 3), (16, nClasses, 3))]
        return network(**units[0], silu1=nn.SiLU(), pool=nn.AvgPool2d(4), **units[1],
                       silu2=nn.SiLU(), **units[2], silu3=nn.SiLU(),
                       average=nn.AdaptiveAvgPool2d(1))

    def run(*flags, dtype=torch.float32):
        made = experiment.from_command([
            '--model_def=smooth', '--binaryWeight', '--binEnd=3', '--dataset=tuberlin',
            f'--data_dir={sketch_folder}', *flags])
        model, generator = made.make_network().to(dtype), torch.Generator().manual_seed(1)
        target = torch.arange(64) % 3
        images = torch.rand(64, 1, 128, 128, generator=generator) + target.view(
            -1, 1, 1, 1) * torch.linspace(0, 1, 128) - 1
        batches = [
            *zip(
                images.to(dtype).chunk(made.flags.accumulate), target.chunk(made.flags.accumulate))]
        train.train_epoch(model, batches, torch.optim.SGD(model.parameters(), lr=0.0), CPU,
                          quiet(batches), 10, made.flags.amp, accumulate=made.flags.accumulate)
        norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        return (torch.cat([parameter.grad.double().flatten() for parameter in model.parameters()]),
                torch.cat([layer.running_var.double() for layer in norms]))
    return run


@pytest.mark.parametrize('more', [[], ['--accumulate=2']])
def test_the_gradient_is_that_of_float64(more, step):
    """Under the defaults, and under the flags that make training faster."""
    exact = step('--binSearch=exact', *more, dtype=torch.float64)
    for flags, gradient_bound, variance_bound in (
            ([], 5e-5, 2e-6), (['--channelsLast'], 5e-5, 2e-6), (['--binSearch=exact'], 5e-5, 2e-6),
            (['--amp=bfloat16'], 0.1, 0.05), (['--amp=bfloat16', '--channelsLast'], 0.1, 0.05)):
        errors = [((found - right).norm() / right.norm()).item()
                  for found, right in zip(step(*flags, *more), exact)]
        assert errors[0] < gradient_bound and errors[1] < variance_bound, (flags, errors)


@pytest.mark.parametrize('amp, capabilities, times',
                         [('bfloat16', {'avx512_f': True, 'amx_bf16': False}, 18),
                          ('bfloat16', {'neon': True, 'bf16': False}, 18),
                          ('bfloat16', {'bf16': True}, 0),
                          ('bfloat16', {'avx512_bf16': True, 'amx_bf16': False}, 0),
                          ('bfloat16', {'avx512_bf16': False, 'amx_bf16': True}, 0),
                          ('float16', {'avx512_bf16': True, 'avx512_fp16': True}, 84),
                          ('float16', {'amx_fp16': True}, 0), ('off', {}, 0)])
def test_a_warning_names_a_type_that_is_slow_on_this_processor(amp, capabilities, times,
                                                               monkeypatch):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: capabilities)
    flags = flags_of(f'--amp={amp}')
    assert resolve.ignored(flags, 1, CPU) == [
        f'--amp={amp} is slow on this processor, which lacks instructions for it: '
        f'training took up to {times} times as long as in float32'
    ] * bool(times)
    assert not resolve.ignored(flags, 1, GPU)


def test_deterministic_algorithms(monkeypatch):
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    try:
        experiment.choose_algorithms(True)
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (9, 0))
        assert 'cuDNN benchmark off, deterministic algorithms' in arithmetic(
            GPU, 'off', 'off', False)
    finally:
        experiment.choose_algorithms(False)
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark


# Those for which torch.use_deterministic_algorithms says that they raise an error on a GPU.
WITHOUT_DETERMINISTIC = {
    '_adaptive_avg_pool2d_backward', 'adaptive_max_pool2d_backward', 'upsample_bilinear2d_backward',
    'nll_loss2d_forward', 'reflection_pad2d_backward', 'grid_sampler_2d_backward', 'put_', 'histc',
    'bincount', 'median', 'scatter_reduce_'}


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.add(operator.overloadpacket.__name__)
        return operator(*args, **kwargs or {})


@pytest.mark.parametrize('name', FAMILIES)
def test_networks_have_deterministic_algorithms(name):
    inpsize = small_inpsize(name)
    model = binarize.wrap(models.build(name, 5, channels=1, inpsize=inpsize), 2, 2, 'dab',
                          'exact').train()
    with Operators() as operators:
        F.nll_loss(model(torch.randn(2, 1, inpsize, inpsize)), torch.tensor([0, 1])).backward()
    assert 'convolution_backward' in operators.names and not operators.names & WITHOUT_DETERMINISTIC
