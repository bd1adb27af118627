"""Pretrain the encoder of signals on synthetic signals alone: the recipe of the weights that ndvit ships.

`python benchmarks/pretrain_signals.py --output FOLDER` draws signals from `ndvit.data.synthetic`, trains the network
`encoder_small` and writes signal_encoder.safetensors, with curve.csv, the probes along the way. An interrupted training
continues where it stopped, to the same weights on the same machine: each step draws from a generator of its own.

Two objectives take turns.

- Contrast (InfoNCE; van den Oord et al., 2018): two crops of a signal are recognised among those of the other signals.
- Episodes (meta-learning with a closed form; Bertinetto et al., 2019): a ridge classifier over the encoder's features
  is solved on a few examples of a synthetic task and scored on others. Most of the loss is that of its sum with a ridge
  classifier over random convolutions, which is how the encoder is used: it learns what random convolutions miss.

Probes measure, on synthetic tasks that are not trained on, both classifiers and their sum. No real signal is read.
"""

import csv
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cyclopts import App
from torch import Tensor, nn

from ndvit import Model
from ndvit.data.synthetic import synthetic_signals, synthetic_tasks
from ndvit.network import create_model
from ndvit.network.encoder_features import token_features
from ndvit.network.random_convolutions import RandomConvolutions

LENGTH = 256
BATCH = 128  # signals in a step; twice as many views in a contrastive step
QUERIES = 3  # examples of each class that an episode is scored on
FEATURES = 504  # of the random convolutions beside the encoder: few, because they would take most of the time
TEMPERATURE = 0.1
CONTRAST, ALONE = 0.3, 0.4  # weight of the contrastive loss; share of the encoder's own loss in that of an episode
DIFFICULTY = (0.05, 0.4)  # of the tasks; most then have accuracies from 50 to 75 %, and harder ones teach nothing
RATE, DECAY, AVERAGE = 1e-3, 0.02, 0.998
WARM, COOL = 100, 0.2  # steps of warm-up; share of the training at whose end the learning rate falls to 0
app = App(help=__doc__)


class Objective(nn.Module):
    """The encoder with everything that is learned beside it and thrown away."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.encoder = create_model(name)
        width = 3 * self.encoder.config.depth * self.encoder.config.embed_dim
        self.projection = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 128))
        self.penalties, self.scales = nn.Parameter(-torch.ones(2)), nn.Parameter(torch.zeros(2))  # logarithms
        self.rocket = RandomConvolutions(1, LENGTH, FEATURES, 2)
        known = synthetic_signals(256, LENGTH, seed=9)
        self.rocket.draw(torch.from_numpy(known), None, torch.Generator().manual_seed(9))

    def features(self, signals: Tensor) -> Tensor:
        """What the committee reads of the encoder, see `token_features`: (B, 1, LENGTH) -> (B, F)."""
        with torch.autocast("cpu", torch.bfloat16):
            return token_features(self.encoder, signals).float()

    def contrast(self, views: Tensor) -> tuple[Tensor, dict[str, float]]:
        """InfoNCE of views (2 n, 1, LENGTH), whose second half holds the other views of the first."""
        z = F.normalize(self.projection(self.features(views)), dim=1)
        cosines = (z @ z.T / TEMPERATURE).fill_diagonal_(-1e9)
        target = torch.arange(len(z)).roll(len(z) // 2)
        right = (cosines.argmax(1) == target).float().mean()
        return F.cross_entropy(cosines, target), {"pairs": right.item()}

    def episode(self, signals: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Loss of tasks (tasks, classes, examples, LENGTH), the last `QUERIES` examples being those scored on."""
        tasks, classes, examples, length = signals.shape
        flat = signals.reshape(-1, 1, length)
        known = examples - QUERIES
        scores = []
        for index, features in enumerate((self.features(flat), self.rocket.features(flat))):
            parts = features.view(tasks, classes, examples, -1)
            support, query = parts[:, :, :known].flatten(1, 2), parts[:, :, known:].flatten(1, 2)
            scores.append(self._ridge(support, query, classes, index))
        target = torch.arange(classes).repeat_interleave(QUERIES).expand(tasks, -1).reshape(-1)
        own, beside, both = (s.reshape(-1, classes) for s in (scores[0], scores[1], scores[0] + scores[1]))
        losses = [F.cross_entropy(s, target) / math.log(classes) for s in (own, both)]
        names = {"encoder": own, "convolutions": beside, "both": both}
        right = {name: (s.argmax(1) == target).float().mean().item() for name, s in names.items()}
        return ALONE * losses[0] + (1 - ALONE) * losses[1], right

    def _ridge(self, support: Tensor, query: Tensor, classes: int, index: int) -> Tensor:
        """Scores (tasks, queries, classes) of a ridge classifier that is solved on the support."""
        mean, std = support.mean(1, keepdim=True), support.std(1, keepdim=True) + 0.03
        support, query = (support - mean) / std, (query - mean) / std
        labels = torch.arange(classes).repeat_interleave(support.shape[1] // classes)
        targets = 2 * F.one_hot(labels, classes).float() - 1
        targets = (targets - targets.mean(0)).expand(len(support), -1, -1)
        width = support.shape[2]
        kernel = support @ support.mT / width + self.penalties[index].exp() * torch.eye(support.shape[1])
        dual = torch.cholesky_solve(targets, torch.linalg.cholesky(kernel))
        return 2 * self.scales[index].exp() * (query @ support.mT / width) @ dual


class Steps(torch.utils.data.Dataset[Tensor]):
    """The signals of each step: views for even steps, tasks for odd ones."""

    def __init__(self, seed: int, count: int) -> None:
        self.seed, self.count = seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, step: int) -> Tensor:
        random = np.random.default_rng([self.seed, step])
        if step % 2 == 0:
            signals = synthetic_signals(BATCH, LENGTH, seed=random)[:, 0]
            drawn = np.concatenate([view(signals, random), view(signals, random)])[:, None]
        else:
            classes, examples = int(random.integers(2, 7)), int(random.integers(3, 11)) + QUERIES
            tasks = max(2, round(BATCH / (classes * examples)))
            drawn = synthetic_tasks(tasks, classes, examples, LENGTH, seed=random, difficulty=DIFFICULTY).signals
        return torch.from_numpy(np.ascontiguousarray(drawn, dtype=np.float32))


def view(signals: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A crop of 50 to 100 % of each signal (n, LENGTH), resized, with noise, and standardised."""
    count, length = signals.shape
    share = random.uniform(0.5, 1, (count, 1))
    start = random.random((count, 1)) * (1 - share)
    at = (start + share * np.linspace(0, 1, length)) * (length - 1)
    low = np.minimum(at.astype(int), length - 2)
    x = np.take_along_axis(signals, low, 1) * (1 - at + low) + np.take_along_axis(signals, low + 1, 1) * (at - low)
    x = x + random.uniform(0, 0.15, (count, 1)) * random.standard_normal(x.shape)
    x = x - x.mean(1, keepdims=True)
    return np.asarray(x / (x.std(1, keepdims=True) + 1e-6), dtype=np.float32)


@torch.no_grad()
def probe(objective: Objective, tasks: int = 200) -> dict[str, float]:
    """Accuracies on synthetic tasks of a seed of their own."""
    rows = []
    for number in range(tasks // 2):
        random = np.random.default_rng([1_000_003, number])
        drawn = synthetic_tasks(2, int(random.integers(2, 7)), 5 + QUERIES, LENGTH, seed=random, difficulty=DIFFICULTY)
        signals = drawn.signals
        rows.append(objective.episode(torch.from_numpy(signals))[1])
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def write_encoder(average: dict[str, Tensor], model: str, path: Path, steps: int, signals: int) -> None:
    """Write the averaged weights of the encoder as a model file in bfloat16."""
    network = create_model(model)
    own = {name.removeprefix("encoder."): value for name, value in average.items() if name.startswith("encoder.")}
    network.load_state_dict(own)
    facts = {"model": model, "licence": "MIT", "recipe": f"python benchmarks/pretrain_signals.py --steps {steps}"}
    Model(network.bfloat16(), provenance=facts | {"steps": steps, "signals": signals}).save(path)


def average_into(average: dict[str, Tensor], network: nn.Module, share: float) -> None:
    """Exponential moving average of the weights."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            average[name].lerp_(value, 1 - share) if value.is_floating_point() else average[name].copy_(value)


def learning_rate(step: int, steps: int) -> float:
    """Warm-up, a constant rate, then a linear fall to 0."""
    return RATE * min(1.0, (step + 1) / WARM, (steps - step) / (COOL * steps))


@app.default
def main(
    output: Path,
    *,
    model: str = "encoder_small",
    steps: int = 16_000,
    seed: int = 0,
    workers: int = 1,
    every: int = 1_000,
) -> None:
    """Pretrain.

    Args:
        output: folder for the weights, the curve and the checkpoint.
        model: name of the network.
        steps: optimizer steps; each sees about 200 signals.
        seed: seed of weights and signals.
        workers: processes that draw signals.
        every: steps between probes and checkpoints.
    """
    torch.manual_seed(seed)
    objective = Objective(model)
    decayed = [p for p in objective.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in objective.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98))
    average = {name: value.clone() for name, value in objective.state_dict().items()}
    output.mkdir(parents=True, exist_ok=True)
    kept, done, seen, rows = output / "training.pt", 0, 0, []
    if kept.is_file():
        state: dict[str, Any] = torch.load(kept, weights_only=True)
        objective.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        average, done, seen, rows = state["average"], state["step"], state["seen"], state["rows"]
    stream = torch.utils.data.DataLoader(
        Steps(seed, steps), batch_size=None, num_workers=workers, sampler=range(done, steps)
    )
    start, losses = time.perf_counter(), {"contrast": [], "episode": []}
    seen_before = seen
    for step, signals in enumerate(stream, start=done):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        contrast = step % 2 == 0
        loss, _ = objective.contrast(signals) if contrast else objective.episode(signals)
        losses["contrast" if contrast else "episode"].append(loss.item())
        optimizer.zero_grad()
        (CONTRAST * loss if contrast else loss).backward()
        nn.utils.clip_grad_norm_(decayed + others, 1.0)
        optimizer.step()
        average_into(average, objective, min(AVERAGE, (step + 1) / (step + 10)))
        seen += signals.shape[:-1].numel()
        if (step + 1) % every == 0 or step + 1 == steps:
            trained = Objective(model)
            trained.load_state_dict(average)
            row = {"step": step + 1, "signals": seen}
            row |= {name: float(np.mean(values)) for name, values in losses.items()} | probe(trained.eval())
            row["rate"] = (seen - seen_before) / (time.perf_counter() - start)
            rows.append(row)
            losses = {"contrast": [], "episode": []}
            print(" ".join(f"{k} {v:.4g}" for k, v in row.items()), time.strftime("%H:%M:%S"), flush=True)
            state = {"weights": objective.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            torch.save(state | {"step": step + 1, "seen": seen, "rows": rows}, kept)
            write_encoder(average, model, output / "signal_encoder.safetensors", steps, seen)
            with (output / "curve.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    app()
