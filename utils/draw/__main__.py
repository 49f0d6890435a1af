"""Draw, and see what a network takes it for: python3 -m utils.draw CHECKPOINT_OR_PACKED

Serves a page, on this machine only, on which one draws with mouse, pen or finger and sees the
likeliest classes while drawing. For networks of sketches. Ctrl-C ends it.
"""
from utils.system import interrupt  # before torch

if __name__ == '__main__':
    interrupt.end_silently()

import argparse
import os
import shlex
import socket
import threading
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from torch.nn.utils import parametrize

import datasets
from utils import packed
from utils.flags.parser import Parser, at_least
from utils.pages import render
from utils.source import Source, checkpoint_source, packed_source
from utils.system import console
from utils.system.errors import InputError, reported
from utils.training.predictions import LIKELIEST

from .recognizer import Recognizer
from .server import Server

PROGRAM = 'utils.draw'
TEMPLATE = Path(__file__).with_name('page.html')


def main(arguments: Sequence[str] | None = None):
    """Serve the page for the network that the arguments name, until Ctrl-C or SIGTERM."""
    with reported(PROGRAM):
        options = parse(arguments)
        source = sketch_source(options.network)
        recognizer = Recognizer(source)
        with parametrize.cached():      # each weight is binarized once
            serve(options, source, recognizer)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog=f'python3 -m {PROGRAM}', description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('network', metavar='CHECKPOINT_OR_PACKED',
                        help='a checkpoint, or a packed model (.dab), of a network of sketches')
    parser.add_argument('--port', type=at_least(0, most=65535), default=0, metavar='N',
                        help='port of the page (default: a free one)')
    parser.add_argument('--no-browser', action='store_true',
                        help='print the address only (so it is over ssh and without a desktop)')
    return parser.parse_args(arguments)


def sketch_source(path: str) -> Source:
    """The Source of a network of sketches. Raises InputError."""
    source = packed_source(path) if packed.is_packed(path) else checkpoint_source(path)
    if source.channels != 1:
        raise InputError(f'{path} is of a network of photographs ({source.channels} channels, '
                         f'{datasets.data_name(source.flags["dataset"])}): drawings are for '
                         'networks of sketches (1 channel)')
    return source


def serve(options: argparse.Namespace, source: Source, recognizer: Recognizer):
    """Serve the page and say where, until a signal ends it; that is not an error."""
    page = render(TEMPLATE, **facts(source, recognizer))
    server = Server(page, recognizer.answer, options.port)
    with suppress(KeyboardInterrupt), server:
        server.warm_up()
        console.show(f'{server.url}  (Ctrl-C ends it)')
        if 'SSH_CONNECTION' in os.environ:
            port = server.server_port
            console.show(f'from your own machine: ssh -L {port}:127.0.0.1:{port} '
                         f'{socket.gethostname()}')
        elif has_desktop() and not options.no_browser:
            threading.Thread(target=webbrowser.open, args=[server.url], daemon=True).start()
        server.serve_forever()


def has_desktop() -> bool:
    return bool(os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY'))


def facts(source: Source, recognizer: Recognizer) -> dict:
    """What the template shows."""
    flags, checkpoint = source.flags, source.checkpoint
    name = flags['model_def']
    if checkpoint and flags['binaryWeight']:
        name += f', binarized by {flags["binarizer"]}'
    accuracy = ''       # a packed model does not record it
    if checkpoint:
        metrics = checkpoint['metrics']
        accuracy = (f'{metrics["top1"]:.1f} % of {metrics["images"]} validation images, after '
                    f'epoch {checkpoint["epoch"]}')
    return {'title': f'Draw and see: {flags["model_def"]}', 'network': name, 'file': source.path,
            'data': datasets.data_name(flags['dataset']), 'classes': source.classes,
            'accuracy': accuracy, 'arithmetic': recognizer.arithmetic,
            'inpsize': flags['inpsize'], 'shown': min(LIKELIEST, len(source.classes)),
            'command': console.one_line(f'python3 -m {PROGRAM} {shlex.quote(source.path)}')}


if __name__ == '__main__':
    main()
