"""Make data loaders that leave torch's random state alone."""

import signal

import torch


def repeatable_loader(data: torch.utils.data.Dataset, **arguments) -> torch.utils.data.DataLoader:
    """
    Return a data loader that draws nothing from torch's random state, so that a run that goes on repeats one that
    never stopped. Its workers end with this process, not by a SIGTERM to all of a group, after which it needs them.
    """
    generator = torch.Generator().manual_seed(0)
    return torch.utils.data.DataLoader(data, generator=generator, worker_init_fn=_ignore_sigterm, **arguments)


def _ignore_sigterm(worker: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
