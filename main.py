"""Train a convolutional network with distribution-aware binarized weights (WACV 2018).

    python3 main.py --binaryWeight                                a small network on drawn doodles
    python3 main.py --dataset=tuberlin --data_dir=DIR --model_def=sketchanetwbin --binaryWeight
    python3 main.py --resume=logs/NAME/last.pth.tar               continue where a run stopped
    python3 main.py --resume=logs/NAME/best.pth.tar --evaluate    validate a checkpoint
    python3 main.py --resume=logs/NAME/best.pth.tar --classify drawing.png more/
    python3 main.py --resume=logs/NAME/best.pth.tar --export model.dab       or .pt, or .onnx
    python3 main.py --packed model.dab --classify drawing.png     from one bit per binarized weight

opts.py has the flags, utils/experiment.py makes network and data from them, utils/training/loop.py
runs the epochs, utils/binarize.py is the binarization.
"""
import sys
from collections.abc import Sequence

from utils.system import interrupt  # before torch

if __name__ == '__main__':
    interrupt.end_silently()

import torch
from torch.nn.utils import parametrize

import datasets
from utils.experiment import Experiment, from_command
from utils.record.progress import Progress
from utils.system import console
from utils.system.errors import reported
from utils.training import epoch, parallel
from utils.training.predictions import likeliest

PROGRAM = 'main.py'


def main(arguments: Sequence[str] | None = None):
    """Run the command; arguments defaults to those of this process."""
    with reported(PROGRAM, parallel=True):
        experiment = from_command(arguments)
        flags = experiment.flags
        if flags.export:
            from utils.export import export
            if parallel.rank() == 0:
                export(experiment)
        elif flags.classify:
            classify(experiment)
        else:
            if flags.evaluate:
                from utils.evaluate import evaluate
                network = evaluate(experiment)
            else:
                network = experiment.train()
            if flags.calculateBinarizationLosses:
                print_binarization_losses(experiment, network)
        parallel.stop()


def print_binarization_losses(experiment: Experiment, network: torch.nn.Module):
    from utils.evaluate import binarization_losses, loss_table
    _, loader = experiment.make_loaders()
    progress = Progress('binarization losses', len(loader))
    parallel.say(loss_table(binarization_losses(network, loader, experiment.device, progress)))


@torch.no_grad()
def classify(experiment: Experiment):
    """Print the five likeliest classes of every image of --classify, without the data.

    The network computes in float32, as its exports do, whatever --amp says. A warning names a
    sketch that is not dark on white paper, or has hardly any ink. An image that cannot be read is
    named, and the exit code is that of a RunError at the end.
    """
    flags, network = experiment.flags, experiment.make_network().eval()
    transform = datasets.transform(experiment.spec, flags.inpsize, tenCrop=flags.tenCrop)
    code = 0
    with parametrize.cached():
        for path in datasets.image_files(flags.classify):
            try:
                image = datasets.read_image(path, experiment.channels, ink=flags.ink)
            except datasets.ImageError as error:
                console.complain(console.one_line(f'{PROGRAM}: error: {error}'))
                code = error.exit_code
                continue
            if experiment.channels == 1 and (fault := datasets.paper_fault(image, flags.ink)):
                console.complain(console.one_line(f'{PROGRAM}: warning: {path} {fault}'))
            log_probs = epoch.predict(network, transform(image)[None].to(experiment.device))
            labels, probabilities = (of_images[0].tolist() for of_images in likeliest(log_probs))
            named = [f'{experiment.classes[label]} {100 * probability:.1f} %'
                     for label, probability in zip(labels, probabilities)]
            parallel.say(console.one_line(f'{path}: {", ".join(named)}'))
    if code:
        sys.exit(code)


if __name__ == '__main__':
    main()
