"""A small PyTorch network for tables that can be killed after any epoch and still end as the same model."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.spec import ModelSpec
from training.checkpoint import Checkpoint, Progress

BATCH_ROWS = 512
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-5
LARGEST_EMBEDDING = 8


def fit_network(
    matrix: npt.NDArray[np.float32],
    labels: npt.NDArray[np.float32],
    category_counts: Sequence[int],
    spec: ModelSpec,
    seed: int,
    checkpoint: Checkpoint | None,
) -> Any:
    """Fit a network of embeddings, standardised numbers and two hidden layers (binary cross-entropy, Adam).

    Everything random in an epoch comes from (seed, epoch), never from what ran before, so model and optimizer are all
    the state there is and a resumed fit equals an uninterrupted one on the same kind of device.

    Args:
        matrix: (n, k) float32, NaN where a number is missing, codes in categorical columns.
        labels: (n,) zeros and ones.
        category_counts: of each column how many codes above 0 it has; 0 for a numeric column.
        spec: epochs, hidden.
        seed: of the initial weights and of the order of batches.
        checkpoint: where to keep progress; None keeps none.

    Returns:
        A `torch.nn.Module` on the CPU in eval mode: (n, k) float32 -> (n,) probability.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with _repeatable(seed):
        network = build_network(matrix, category_counts, spec.hidden).to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        done = checkpoint.load() if checkpoint else None
        first_epoch = 0
        if done:
            state = torch.load(io.BytesIO(done.state), map_location=device, weights_only=True)
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            first_epoch = done.step
        inputs, targets = torch.from_numpy(matrix).to(device), torch.from_numpy(labels).to(device)
        loss_of = torch.nn.BCEWithLogitsLoss()
        for epoch in range(first_epoch, spec.epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(matrix))
            for batch in torch.split(torch.from_numpy(order).to(device), BATCH_ROWS):
                optimizer.zero_grad(set_to_none=True)
                loss_of(network.logits(inputs[batch]), targets[batch]).backward()
                optimizer.step()
            if checkpoint:
                buffer = io.BytesIO()
                torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
                checkpoint.save(Progress(epoch + 1, buffer.getvalue()))
    return network.cpu().eval()


def build_network(matrix: npt.NDArray[np.float32], category_counts: Sequence[int], hidden: int) -> Any:
    """The untrained network, with the scale of its numeric inputs taken from the matrix.

    Standardising and marking what is missing happen inside, so that the exported model takes the same matrix as any
    other.

    Args:
        matrix: (n, k) float32 to take means and deviations from.
        category_counts: of each column how many codes above 0 it has; 0 for a numeric column.
        hidden: width of the hidden layers.
    """
    import torch
    from torch import Tensor, nn

    numeric = [j for j, count in enumerate(category_counts) if count == 0]
    categorical = [j for j, count in enumerate(category_counts) if count]
    mean, deviation = _scale(matrix[:, numeric])

    class TabularNetwork(nn.Module):
        """Embeddings and standardised numbers, two hidden layers, one logit."""

        mean: Tensor
        deviation: Tensor

        def __init__(self) -> None:
            super().__init__()
            widths = [min(LARGEST_EMBEDDING, (category_counts[j] + 2) // 2) for j in categorical]
            self.embeddings = nn.ModuleList(
                nn.Embedding(category_counts[j] + 1, width) for j, width in zip(categorical, widths, strict=True)
            )
            self.register_buffer("mean", torch.from_numpy(mean))
            self.register_buffer("deviation", torch.from_numpy(deviation))
            self.layers = nn.Sequential(
                nn.Linear(2 * len(numeric) + sum(widths), hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Linear(hidden, 1),
            )

        def logits(self, rows: Tensor) -> Tensor:
            """(n, k) -> (n,) log odds."""
            numbers = rows[:, numeric]
            missing = torch.isnan(numbers)
            # Ten deviations: one absurd value must not carry the answer away, nor a gradient.
            scaled = ((numbers - self.mean) / self.deviation).clamp(-10.0, 10.0)
            parts = [torch.where(missing, torch.zeros_like(scaled), scaled), missing.to(rows.dtype)]
            parts += [embed(rows[:, j].long()) for j, embed in zip(categorical, self.embeddings, strict=True)]
            return self.layers(torch.cat(parts, dim=1)).squeeze(1)  # type: ignore[no-any-return]

        def forward(self, rows: Tensor) -> Tensor:
            """(n, k) -> (n,) probability."""
            return torch.sigmoid(self.logits(rows))

    return TabularNetwork()


def _scale(
    numbers: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and deviation of each column without its NaN; 0 and 1 where there is nothing to measure."""
    known = np.isfinite(numbers)
    count = np.maximum(known.sum(axis=0), 1)
    values = np.where(known, numbers, 0.0).astype(np.float64)
    mean = values.sum(axis=0) / count
    deviation = np.sqrt((np.where(known, values - mean, 0.0) ** 2).sum(axis=0) / count)
    return mean.astype(np.float32), np.where(deviation > 1e-9, deviation, 1.0).astype(np.float32)


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Seeded, on one CPU thread (sums in a fixed order), and with the caller's settings restored."""
    import torch

    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
