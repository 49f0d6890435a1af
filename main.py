"""Train a convolutional network with distribution-aware binarized weights (WACV 2018).

    python3 main.py --binaryWeight                                a small network on drawn doodles
    python3 main.py --dataset=tuberlin --data_dir=DIR --model_def=sketchanetwbin --binaryWeight
    python3 main.py --resume=logs/NAME/last.pth.tar               continue where a run stopped
    python3 main.py --resume=logs/NAME/best.pth.tar --evaluate    validate a checkpoint
    python3 main.py --resume=logs/NAME/best.pth.tar --classify drawing.png more/
    python3 main.py --resume=logs/NAME/best.pth.tar --export model.dab
    python3 main.py --packed model.dab --classify drawing.png     by a file that has one bit per binarized weight
"""
import copy
import os
import sys
import warnings

import utils  # noqa: F401  (before torch)

import torch
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, DistributedSampler, Subset

import datasets
import models
from models.blocks import Sign, has_signs
from opts import parse, source
from utils import binarize, checkpoint, interrupt, optim, parallel, train
from utils.describe import describe, loss_table
from utils.packed import format as packed_format, network as packed
from utils.record import Progress, Run, SilentRun, summary


def load_data(flags, stored):
    """The data that the flags name, which must be what the checkpoint `stored` (or None) was trained on.

    Sets flags.nClasses.
    """
    data = datasets.load(flags.dataset, flags.data_dir, flags.inpsize, flags.tenCrop, flags.manualSeed)
    if flags.nClasses not in (None, len(data.classes)):
        raise ValueError(f'--nClasses={flags.nClasses}, but the data has {len(data.classes)} classes')
    if stored and (stored['classes'], stored['channels']) != (data.classes, data.channels):
        raise ValueError(f'{source(flags)} was trained on other classes or channels than this data has')
    flags.nClasses = len(data.classes)
    return data


def build(flags, stored, channels):
    """The network that the flags name, with the weights of `stored`: a checkpoint, a packed model or None.

    Sets flags.binEnd where it was not given.
    """
    if flags.packed:
        return stored['network']
    model = models.build(flags.model_def, flags.nClasses, channels, flags.inpsize, flags.signLayers)
    if flags.binEnd is None:
        flags.binEnd = binarize.default_end(model, flags.binStart)
    if flags.binaryWeight:
        binarize.wrap(model, flags.binStart, flags.binEnd, flags.binarizer, flags.binSearch)
    if stored:
        checkpoint.load_model(model, stored, flags.resume)
    elif flags.pretrained_file:
        anew = checkpoint.load_pretrained(model, flags.pretrained_file)
        say(f'starts from {flags.pretrained_file}' + (f', but for {", ".join(anew)}' if anew else ''))
    if flags.channelsLast:      # evaluation rounds as the packed network does
        model.register_forward_pre_hook(lambda _, inputs: packed.channels_last(inputs[0]) if model.training else None)
    trains = not (flags.evaluate or flags.classify or flags.export)
    if trains and flags.batch_size == 1:    # a BatchNorm over 1×1 maps cannot train on it: better to hear so now
        copy.deepcopy(model)(torch.zeros(1, channels, flags.inpsize, flags.inpsize))
    if flags.calculateBinarizationLosses and not has_signs(model):
        raise ValueError(f'--calculateBinarizationLosses: {flags.model_def} has no sign layers')
    return model


def loaders(data, flags, device):
    """This process's share of the training and validation batches.

    A last lone training image, too few for BatchNorm, is left out; no validation image is.
    """
    common = {'num_workers': flags.workers, 'pin_memory': device.type == 'cuda'}
    rank, processes = parallel.rank(), parallel.processes()
    sampler = DistributedSampler(data.train, processes, rank, seed=flags.manualSeed)
    lone = flags.batch_size > 1 and len(sampler) % flags.batch_size == 1
    share = Subset(data.val, range(rank, len(data.val), processes))
    return (DataLoader(data.train, flags.batch_size, sampler=sampler, drop_last=lone, **common),
            DataLoader(share, flags.testbatchsize, **common))


def open_run(flags, stored, model):
    """The optimizer and the record of a run, both as `stored` left them."""
    optimizer = optim.build_optimizer(flags.optimType, model.parameters(), flags.maxlr,
                                      flags.weightDecay, flags.momentum, flags.nesterov)
    if stored:      # only the state: its other settings are those of the flags
        optimizer.load_state_dict(optimizer.state_dict() | {'state': stored['optimizer']['state']})
    if parallel.rank() > 0:
        return optimizer, SilentRun()
    checkpoint.check_room(flags.logdir, model)
    folder = os.path.join(flags.logdir, flags.name)
    return optimizer, Run(folder, vars(flags), flags.resume, stored, flags.overwrite)


def learn(flags, stored, data, model, optimizer, run, batches, device):
    """Train, validate and save, epoch after epoch."""
    first, best = stored['epoch'] if stored else 0, run.best
    run.weights(model)
    if stored:
        checkpoint.restore_random_state(stored['rng'])
    scaler = torch.amp.GradScaler(device.type, enabled=flags.amp == 'float16')
    if stored and stored.get('scaler'):     # empty where training was not in float16
        scaler.load_state_dict(stored['scaler'])
    replica = parallel.replicate(model, device, flags.syncBN)
    if flags.compile:
        replica = torch.compile(replica)
    try:
        for epoch in range(first, flags.epochs):
            lr = optim.SCHEDULES[flags.learningratescheduler](
                epoch, flags.maxlr, flags.minlr, flags.decayinterval, flags.decaylevel)
            optim.set_learning_rate(optimizer, lr)
            data.train.set_epoch(epoch)
            batches[0].sampler.set_epoch(epoch)
            if parallel.rank() > 0:     # other dropout than in the first process, whose state is saved
                torch.manual_seed((flags.manualSeed + epoch) * parallel.processes() + parallel.rank())
            progress = Progress(f'epoch {epoch + 1}/{flags.epochs}', len(batches[0]))
            metrics = train.train_epoch(
                replica, batches[0], optimizer, device, progress, flags.printfreq, flags.amp, scaler)
            run.epoch('train', epoch, metrics, lr)
            parallel.agree_on_buffers(model)
            progress = Progress('validation', len(batches[1]))
            metrics = train.validate(model, batches[1], device, progress, flags.amp)
            run.epoch('val', epoch, metrics, lr)
            run.weights(model, epoch)
            is_best, best = metrics['top1'] > best, max(metrics['top1'], best)
            run.say(f'best Prec@1 so far {best:.2f}')
            run.save({'epoch': epoch + 1, 'best': best, 'metrics': metrics, 'model': model.state_dict(),
                      'optimizer': optimizer.state_dict(), 'scaler': scaler.state_dict(),
                      'rng': checkpoint.random_state(), 'flags': vars(flags), 'classes': data.classes,
                      'channels': data.channels}, is_best)
    finally:
        run.say(f'{run.saved} of {flags.epochs} epochs done' + (f', best Prec@1 {best:.2f}' if run.saved else '') +
                f'; log, curves and checkpoints: {run.folder}')
        run.close()


@torch.no_grad()
def classify(flags, stored, device):
    """Print the five likeliest classes of every image of --classify, from the checkpoint alone."""
    model = build(flags, stored, stored['channels']).to(device).eval()
    show = datasets.transform(flags.dataset, flags.inpsize, tenCrop=flags.tenCrop)
    with parametrize.cached():
        for path in datasets.image_files(flags.classify):
            image = show(datasets.read_image(path, stored['channels'])).to(device)
            top = train.predict(model, image[None])[0].softmax(0).topk(min(5, flags.nClasses))
            likeliest = (f'{stored["classes"][label]} {100 * probability:.1f} %'
                         for probability, label in zip(*map(torch.Tensor.tolist, top)))
            say(f'{path}: {", ".join(likeliest)}')


def export(flags, stored):
    """Write the network of the checkpoint to the packed model --export; print what it needs."""
    model = build(flags, stored, stored['channels'])
    mean, std = datasets.normalization(flags.dataset)
    if len(mean) != stored['channels']:
        raise ValueError(f'{source(flags)} was trained on images of other channels than --dataset={flags.dataset} has')
    description = packed_format.Description(flags.model_def, flags.signLayers, stored['classes'], flags.inpsize,
                                            mean, std, flags.dataset, flags.tenCrop)
    rows = packed_format.write(flags.export, description, packed.pack(model), flags.exportHalf, flags.overwrite)
    say(packed.size_table(rows, model, os.path.getsize(flags.export)))


def say(text):
    if parallel.rank() == 0:
        print(text, flush=True)


def fail(error, code):
    if os.environ.get('LOCAL_RANK', '0') == '0' or code == 1:   # torchrun stops the others after the first that fails
        sys.stderr.write(f'main.py: error: {error}\n')
    sys.exit(code)


def main(arguments=None):
    warnings.formatwarning = lambda message, *_, **__: f'main.py: warning: {message}\n'
    interrupt.listen()
    try:
        flags, stored = parse(arguments)
        device = parallel.start()
        device = torch.device('cpu') if flags.packed else device
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(flags.manualSeed)
        if flags.export:
            return export(flags, stored)
        if flags.classify:
            return classify(flags, stored, device)
        data = load_data(flags, stored)
        model = build(flags, stored, data.channels).to(device)
        batches = loaders(data, flags, device)
        if not flags.evaluate:
            optimizer, run = open_run(flags, stored, model)
    except KeyboardInterrupt:
        fail('stopped by Ctrl-C', 130)
    except (ValueError, OSError) as error:
        fail(error, 1 if isinstance(error, datasets.ImageError) else 2)
    try:
        if flags.evaluate:
            progress = Progress('validation', len(batches[1]))
            say(summary('val', train.validate(model, batches[1], device, progress, flags.amp)))
        else:
            run.say(describe(model, data.channels, flags.inpsize, device, flags.verbose))
            if flags.nesterov and flags.optimType != 'sgd':
                run.say(f'--nesterov is ignored: {flags.optimType} has no Nesterov momentum')
            if flags.syncBN and device.type == 'cpu':
                run.say('--syncBN is ignored: PyTorch synchronizes BatchNorm on GPUs only')
                flags.syncBN = False
            learn(flags, stored, data, model, optimizer, run, batches, device)
        if flags.calculateBinarizationLosses:
            progress = Progress('binarization losses', len(batches[1]))
            say(loss_table(train.binarization_losses(model, Sign, batches[1], device, progress)))
    except KeyboardInterrupt:
        fail('stopped by Ctrl-C', 130)
    except (datasets.ImageError, FloatingPointError, OSError) as error:
        fail(error, 1)
    parallel.stop()


if __name__ == '__main__':
    main()
