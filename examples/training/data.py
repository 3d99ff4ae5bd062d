"""The digits: 1797 images of 8 x 8 pixels, which come with scikit-learn."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

__all__ = ("digits", "make_net")


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images and labels to train with, and images and labels to test with."""
    found = load_digits()
    images = torch.tensor(found.data, dtype=torch.float32) / 16
    labels = torch.tensor(found.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1440], order[1440:]
    return images[train], labels[train], images[test], labels[test]


def make_net(width: int, seed: int) -> torch.nn.Sequential:
    """A small network, the same for a seed."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, 10))
