"""Make data loaders that leave torch's random state alone."""

import torch


def repeatable_loader(data: torch.utils.data.Dataset, **arguments) -> torch.utils.data.DataLoader:
    """
    Return a data loader that draws nothing from torch's random state, so that a run that goes on repeats one that
    never stopped.
    """
    return torch.utils.data.DataLoader(data, generator=torch.Generator().manual_seed(0), **arguments)
