"""What both scripts are told."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ("parse",)


def parse(about: str) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--work", type=Path, default=Path("digits-work"), help="directory of the checkpoints")
    parser.add_argument("--experiment", default="examples/digits", help="namespace/name of the experiment")
    parser.add_argument("--model", default="examples/digits", help="namespace/name of the model to publish")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64, help="images in a step")
    parser.add_argument("--lr", type=float, default=0.005, help="learning rate")
    parser.add_argument("--width", type=int, default=64, help="of the hidden layer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--pace", type=float, default=0.0, help="seconds to wait after each step, to have time to kill it"
    )
    return parser.parse_args()
