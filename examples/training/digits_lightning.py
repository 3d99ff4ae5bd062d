"""Train a small network on scikit-learn's digits with Lightning, and record it with ModelBox.

Kill this program whenever you like and start it again: it goes on from its last checkpoint, in the same run. Kill the
server, too: what is logged waits on disk. See README.md beside this file.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import modelbox
from examples.training.arguments import parse
from examples.training.data import digits, make_net
from modelbox.integrations.lightning import ModelBoxLogger
from modelbox.integrations.torch import publish
from modelbox.resume import ResumeFile


class Digits(LightningModule):
    """The network, and how it is trained."""

    def __init__(self, width: int, lr: float, seed: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = make_net(width, seed)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        loss = cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        scores = self.net(batch[0])
        self.log("accuracy", (scores.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


class Pace(Callback):
    """Says each step, and waits after it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        print(f"step {trainer.global_step - 1}", flush=True)
        time.sleep(self._seconds)


def main() -> None:
    args = parse(__doc__)
    seed_everything(args.seed, verbose=False)
    images, labels, test_images, test_labels = digits()
    # Without a shuffle, what is trained again after a kill is what was trained before it.
    train = DataLoader(TensorDataset(images, labels), batch_size=args.batch)
    test = DataLoader(TensorDataset(test_images, test_labels), batch_size=len(test_images))
    resume = ResumeFile(args.work / "run")
    last = args.work / "last.ckpt" if resume.run_id is not None else None
    module = Digits(args.width, args.lr, args.seed)
    params = {"epochs": args.epochs, "batch": args.batch}
    with modelbox.sync.Client() as client:
        with client.start_run(args.experiment, params=params, resume=resume.run_id) as run:
            resume.begin(run)
            print(f"run {run.id}", flush=True)
            trainer = Trainer(
                max_epochs=args.epochs,
                accelerator="cpu",
                logger=ModelBoxLogger(run=run, resume_file=resume, upload_checkpoints=True),
                callbacks=[ModelCheckpoint(args.work, save_last=True, save_top_k=-1), Pace(args.pace)],
                log_every_n_steps=1,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(module, train, test, ckpt_path=last if last is not None and last.exists() else None)
            with torch.no_grad():
                accuracy = float((module.net(test_images).argmax(1) == test_labels).float().mean())
            created = publish(
                client,
                module.net,
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


if __name__ == "__main__":
    main()
