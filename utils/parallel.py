"""Training on several devices under torchrun: one process per device, NCCL on GPUs, Gloo on CPUs."""
import os

import torch
from torch import distributed
from torch.nn import SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel


def start():
    """Join the other processes, if torchrun started any; returns this one's device."""
    cuda = torch.cuda.is_available()
    device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0))) if cuda else torch.device('cpu')
    if cuda:
        torch.cuda.set_device(device)
    if 'WORLD_SIZE' in os.environ:
        distributed.init_process_group('nccl' if cuda else 'gloo')
    return device


def stop():
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank():
    return distributed.get_rank() if distributed.is_initialized() else 0


def processes():
    return distributed.get_world_size() if distributed.is_initialized() else 1


def sum_(tensor):
    """Sum a tensor over all processes, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor


def replicate(model, device, syncBN=False):
    """The model as training calls it: where there are several processes, they average its gradients."""
    if not distributed.is_initialized():
        return model
    if syncBN:
        model = SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == 'cuda' else None)


def agree_on_buffers(model):
    """Give every process the BatchNorm statistics of the first."""
    if distributed.is_initialized():
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)
