import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import utils  # noqa: E402, F401  (before torch)

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

if 'PYTEST_XDIST_WORKER' not in os.environ:     # else the first process has made one for all
    CACHE = tempfile.TemporaryDirectory()
    os.environ['XDG_CACHE_HOME'] = CACHE.name     # the user's own caches stay as they are
torch.set_num_threads(1)     # small tensors: a second thread costs more than it gives on a busy machine


@pytest.fixture(scope='session')
def sketch_folder(tmp_path_factory):
    """train/ and val/ of three classes of small drawings: bars, boxes, rings."""
    root = tmp_path_factory.mktemp('sketches')
    rng = np.random.default_rng(0)
    for split, count in (('train', 12), ('val', 4)):
        for name in ('bar', 'box', 'ring'):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.new('L', (90, 90), 255)
                draw = ImageDraw.Draw(image)
                x, y, size = rng.integers(10, 40), rng.integers(10, 40), rng.integers(20, 40)
                corners = (int(x), int(y), int(x + size), int(y + size))
                {'bar': draw.line, 'box': draw.rectangle, 'ring': draw.ellipse}[name](corners, width=3, **(
                    {'fill': 0} if name == 'bar' else {'outline': 0}))
                image.save(root / split / name / f'{number}.png')
    return root
