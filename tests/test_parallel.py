"""Two processes on the CPU (Gloo) against one."""
import os
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
from test_main import SMALL, rows
from utils.training.checkpoint import read_checkpoint

GRADIENTS = '''
import sys, torch
from torch import distributed, nn
from torch.nn import functional as F
import models
from utils import binarize
from utils.training import parallel
device = parallel.start()
torch.manual_seed(0)
model = binarize.wrap(models.build('sketchanetwbin', 5, channels=1, inpsize=81), 2, 7).train()
for layer in model.modules():
    if isinstance(layer, (nn.BatchNorm2d, nn.Dropout2d)):
        layer.eval()
images, target = torch.randn(16, 1, 81, 81), torch.arange(16) % 5
mine = slice(parallel.rank(), None, parallel.processes())
replica = parallel.replicate(model, device)
F.nll_loss(replica(images[mine]), target[mine]).backward()
if parallel.rank() == 0:
    torch.save({name: p.grad for name, p in model.named_parameters()}, sys.argv[1])
del replica     # or its threads outlive the interpreter, which now and then aborts
parallel.stop()
'''


def torchrun(processes, *command):
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    return subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={processes}', '--master_port=0',
         '--rdzv_backend=c10d', '--rdzv_endpoint=localhost:0', *command],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_two_halves_of_a_batch_give_the_gradient_of_the_whole(tmp_path):
    script = tmp_path / 'gradients.py'
    script.write_text(GRADIENTS)
    alone = [sys.executable, str(script), str(tmp_path / '1.pt')]
    subprocess.run(alone, env=os.environ | {'PYTHONPATH': str(ROOT)}, check=True)
    done = torchrun(2, str(script), str(tmp_path / '2.pt'))
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f'{processes}.pt') for processes in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)
        assert one[name].abs().max() > 0


@pytest.fixture(scope='module')
def two_processes(sketch_folder, tmp_path_factory):
    """A run of one epoch by two processes, and what it printed."""
    logs = tmp_path_factory.mktemp('parallel')
    done = torchrun(2, 'main.py', *SMALL, '--batch-size=6', '--syncBN', f'--data_dir={sketch_folder}',
                    f'--logdir={logs}', '--name=run', '--epochs=1', '--testbatchsize=5')
    assert done.returncode == 0, done.stderr
    return logs / 'run', done.stdout


def test_one_process_records_for_both(two_processes):
    folder, said = two_processes
    assert said.count('Train:') == said.count('Val:') == 1 and 'GPUs only' in said
    train, val = rows(folder / 'metrics.jsonl')
    assert train['images'] == 36 and val['images'] == 12


def test_validation_and_resuming_by_another_number_of_processes(two_processes, sketch_folder, tmp_path):
    folder, _ = two_processes
    logged = rows(folder / 'metrics.jsonl')[1]
    alone = subprocess.run([sys.executable, 'main.py', '--evaluate', f'--resume={folder}/last.pth.tar'],
                           cwd=ROOT, capture_output=True, text=True)
    assert f'loss {logged["loss"]:.4f}' in alone.stdout and f'top-1 {logged["top1"]:.2f}' in alone.stdout
    done = subprocess.run([sys.executable, 'main.py', '--epochs=2', f'--resume={folder}/last.pth.tar'],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(folder / 'last.pth.tar')['epoch'] == 2


def test_every_process_stops_where_one_fails(sketch_folder, tmp_path):
    done = torchrun(2, 'main.py', *SMALL, f'--data_dir={sketch_folder}', f'--logdir={tmp_path}', '--epochs=3',
                    '--name=run', '--optimType=sgd', '--maxlr=1e30', '--printfreq=1')
    assert done.returncode != 0 and 'NaN' in done.stderr
    assert not (tmp_path / 'run/last.pth.tar').exists()
