"""Train a small network on scikit-learn's digits, and record it with ModelBox.

Kill this program whenever you like and start it again: it goes on from its last checkpoint, in the same run. Kill the
server, too: what is logged waits on disk. See README.md beside this file.
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import modelbox
from examples.training.arguments import parse
from examples.training.data import digits, make_net
from modelbox.integrations.torch import publish
from modelbox.resume import ResumeFile
from modelbox.run import LiveRun


def main() -> None:
    args = parse(__doc__)
    args.work.mkdir(parents=True, exist_ok=True)
    resume = ResumeFile(args.work / "run")
    checkpoint = args.work / "checkpoint.pt"
    params = {key: getattr(args, key) for key in ("epochs", "batch", "lr", "width", "seed")}
    with modelbox.sync.Client() as client:
        with client.start_run(args.experiment, params=params, resume=resume.run_id) as run:
            if resume.run_id is None:
                checkpoint.unlink(missing_ok=True)  # of a run that is done
            resume.begin(run)
            print(f"run {run.id}", flush=True)
            net, accuracy = train(args, run, resume, checkpoint)
            run.log_artifact("weights", checkpoint)
            # Publishing needs the server, logging does not. Without one this fails after a minute; start it again then.
            created = publish(
                client,
                net,
                torch.zeros(1, 64),
                args.model,
                run=run,
                metrics={"accuracy": accuracy},
                input_names=["image"],
                output_names=["scores"],
                aliases=["staging"],
            )
        resume.done()
    print(f"published {args.model}@{created.item.version}, accuracy {accuracy:.3f}", flush=True)


def train(args: Namespace, run: LiveRun, resume: ResumeFile, checkpoint: Path) -> tuple[torch.nn.Module, float]:
    """Trains from the checkpoint on, or from the beginning."""
    images, labels, test_images, test_labels = digits()
    net = make_net(args.width, args.seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
    first, step, metrics = 0, 0, {"accuracy": 0.0}
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        first, step, metrics = state["epoch"] + 1, state["step"], state["metrics"]
        # Perhaps the kill came between saving it and saying so. Said again, it is the same checkpoint.
        run.log_checkpoint(state["epoch"], step=step, metrics=metrics, files=checkpoint)
    for epoch in range(first, args.epochs):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed + epoch))
        for batch in order.split(args.batch):
            loss = cross_entropy(net(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log_metric("loss", loss, step=step, at=resume.at(step))
            print(f"step {step}", flush=True)
            step += 1
            time.sleep(args.pace)
        with torch.no_grad():
            scores = net(test_images)
        metrics = {
            "accuracy": float((scores.argmax(1) == test_labels).float().mean()),
            "test_loss": float(cross_entropy(scores, test_labels)),
        }
        run.log_metrics(metrics, step=epoch, at=resume.at(epoch, "epoch"))
        state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch, "step": step}
        save(state | {"metrics": metrics}, checkpoint)
        run.log_checkpoint(epoch, step=step, metrics=metrics, files=checkpoint)
    return net, metrics["accuracy"]


def save(state: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint that is whole or not there."""
    new = path.with_suffix(".new")
    torch.save(state, new)
    os.replace(new, path)


if __name__ == "__main__":
    main()
