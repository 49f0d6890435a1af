"""Two processes on the CPU (Gloo) against one."""
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from test_main import SMALL, rows
from torch import nn
from torch.nn import functional as F

import main
import models
from utils import binarize
from utils.system import interrupt
from utils.system.errors import reported
from utils.training import parallel
from utils.training.checkpoint import read_checkpoint


def be_one_of_two(rank, port):
    """What torchrun tells each of its processes."""
    os.environ.update(RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
                      MASTER_PORT=str(port))


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def gradients(rank, processes, port, path):
    """The gradient of one of `processes` processes on its share of a batch, saved by the first."""
    if processes > 1:
        be_one_of_two(rank, port)
    device = parallel.start()
    torch.manual_seed(0)
    model = binarize.wrap(models.build('smallwbin', 5, channels=1, inpsize=32), 2, 3).train()
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.Dropout, nn.Dropout2d)):
            layer.eval()
    images, target = torch.randn(16, 1, 32, 32), torch.arange(16) % 5
    mine = slice(rank, None, processes)
    replica = parallel.replicate(model, device)
    F.nll_loss(replica(images[mine]), target[mine]).backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in model.named_parameters()}, path)
    del replica     # or its threads outlive the interpreter, which now and then aborts
    parallel.stop()


def torchrun(processes, *command):
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    return subprocess.run([
        sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={processes}',
        '--master_port=0', '--rdzv_backend=c10d', '--rdzv_endpoint=localhost:0', *command],
                          cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_two_halves_of_a_batch_give_the_gradient_of_the_whole(tmp_path, start):
    port = free_port()
    commands = [start(gradients, *arguments) for arguments in (
        (0, 1, port, tmp_path / '1.pt'), (0, 2, port, tmp_path / '2.pt'), (1, 2, port, None))]
    for command in commands:
        code, _, err = command.wait()
        assert code == 0, err
    one, two = (torch.load(tmp_path / f'{processes}.pt') for processes in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)
        assert one[name].abs().max() > 0


@pytest.fixture(scope='module')
def two_processes(sketch_folder, tmp_path_factory):
    """A run of one epoch by two processes, and what it printed."""
    logs = tmp_path_factory.mktemp('parallel')
    flags = [flag.replace('smallwbin', 'densenet') for flag in SMALL]   # which torchrun knows
    done = torchrun(2, 'main.py', *flags, '--batch-size=6', '--syncBN',
                    f'--data_dir={sketch_folder}', f'--logdir={logs}', '--name=run', '--epochs=1',
                    '--testbatchsize=5', '--dataOn=workers', '--workers=1')
    assert done.returncode == 0, done.stderr
    return logs / 'run', done.stdout


def test_one_process_records_for_both(two_processes):
    folder, said = two_processes
    assert said.count('Train:') == said.count('Val:') == 1 and 'GPUs only' in said
    train, val = rows(folder / 'metrics.jsonl')
    assert train['images'] == 36 and val['images'] == 12


def test_validation_and_resuming_by_another_number_of_processes(two_processes, capsys):
    folder, _ = two_processes
    logged = rows(folder / 'metrics.jsonl')[1]
    main.main(['--evaluate', f'--resume={folder}/last.pth.tar'])
    out = capsys.readouterr().out
    assert f'loss {logged["loss"]:.4f}' in out and f'top-1 {logged["top1"]:.2f}' in out
    main.main(['--epochs=2', f'--resume={folder}/last.pth.tar'])
    assert read_checkpoint(folder / 'last.pth.tar')['epoch'] == 2


def train_as_one_of_two(rank, port, arguments):
    be_one_of_two(rank, port)
    main.main(arguments)


def test_every_process_stops_where_one_fails(sketch_folder, tmp_path, start):
    port, arguments = free_port(), [
        *SMALL, f'--data_dir={sketch_folder}', f'--logdir={tmp_path}', '--epochs=3', '--name=run',
        '--optimType=sgd', '--maxlr=1e30', '--printfreq=1']
    commands = [start(train_as_one_of_two, rank, port, arguments) for rank in (0, 1)]
    ends = [command.wait(120) for command in commands]
    assert all(code != 0 for code, _, _ in ends) and 'NaN' in ends[0][2] + ends[1][2]
    assert not (tmp_path / 'run/last.pth.tar').exists()


# Signals while a process waits for the other one

def hurried(seconds=0.5, waiting=5):
    """So that a test need not wait long."""
    interrupt.PATIENCE, parallel.WAITING = seconds, waiting


def said(command):
    return ''.join(path.read_text() for path in command.outputs if path.exists())


def main_as_one_of_two(rank, port, arguments):
    hurried(waiting=0.2)
    os.environ['LOCAL_RANK'] = str(rank)
    train_as_one_of_two(rank, port, arguments)


STOPS = [(signal.SIGTERM, 143, 'main.py: stopped by SIGTERM\n'),
         (signal.SIGINT, 130, 'main.py: stopped by Ctrl-C\n')]


@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize('number, code, sentence', STOPS)
def test_a_process_whose_partner_never_comes_says_so_and_can_be_stopped(
        tmp_path, start, rank, number, code, sentence):
    port = free_port()
    command = start(main_as_one_of_two, rank, port, [f'--logdir={tmp_path}/logs'])
    command.wait_for(lambda: f'waiting for 1 other process of torchrun at 127.0.0.1:{port} ' in
                     said(command))
    command.send(number)
    exit_code, _, err = command.wait(10)
    assert exit_code == code
    assert err.endswith(sentence)
    assert err.count('\n') == err.count('main.py: ') == 2


def wait_in(call, rank, port):
    """Wait in a collective for the other process, which does something else."""
    hurried()
    be_one_of_two(rank, port)
    with reported('main.py', parallel=True):
        parallel.start('cpu')
        print('joined', flush=True)
        if rank == 1:
            time.sleep(100)
        if call == 'stop':
            parallel.work = torch.distributed.all_reduce(torch.ones(1),
                                                         async_op=True)  # which is still under way
        {
            'gather': lambda: parallel.gather(0), 'sum': lambda: parallel.sum_(torch.ones(1)),
            'stop': parallel.stop,
            'replicate': lambda: parallel.replicate(nn.Linear(2, 2), torch.device('cpu')),
            'buffers': lambda:
            (parallel.broadcast_buffers(nn.BatchNorm2d(1)), parallel.gather(0))}[call]()


@pytest.mark.parametrize('call', ['gather', 'sum', 'stop', 'replicate', 'buffers'])
def test_a_signal_ends_a_process_in_any_collective(start, call):
    port = free_port()
    first, second = (start(wait_in, call, rank, port) for rank in (0, 1))
    for command in first, second:
        command.wait_for(lambda command=command: 'joined' in said(command))
    time.sleep(0.2)
    first.send(signal.SIGTERM)
    code, _, err = first.wait(10)
    assert (code, err) == (143, 'main.py: stopped by SIGTERM\n')


def test_a_signal_ends_a_run_whose_other_process_is_halted(sketch_folder, tmp_path, start):
    port, arguments = free_port(), [
        *SMALL, f'--data_dir={sketch_folder}', f'--logdir={tmp_path}', '--epochs=1000',
        '--name=run', '--dataOn=workers', '--workers=1']
    first, second = (start(main_as_one_of_two, rank, port, arguments) for rank in (0, 1))
    folder = tmp_path / 'run'
    first.wait_for((folder / 'last.pth.tar').exists)
    second.send(signal.SIGSTOP)
    time.sleep(0.5)
    first.send(signal.SIGTERM)
    code, _, err = first.wait(10)
    assert code == 143 and err.endswith('main.py: stopped by SIGTERM\n') and 'Traceback' not in err
    assert (folder / 'log.txt').read_text().endswith('stopped by SIGTERM\n')
    with pytest.raises(ProcessLookupError):     # no loading worker is left
        os.killpg(first.process.pid, 0)
    second.kill()
    done = read_checkpoint(folder / 'last.pth.tar')['epoch']
    main.main([f'--resume={folder}/last.pth.tar', f'--epochs={done + 1}'])
    assert [row['epoch'] for row in rows(folder / 'metrics.jsonl')] == [
        number // 2 for number in range(2 * done + 2)]
