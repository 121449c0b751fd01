"""The pre-training step in PyTorch, as its users would write it for a CPU, from the papers.

AudioNTT2020 of width 2048 (Niizumi et al., arXiv 2204.07402), projector 4096 -> 256, VICReg's loss with weights
25 / 25 / 1 (Bardes et al., arXiv 2105.04906), each view in a call of its own. Its fastest settings on CPUs: channels
last in memory, and Adam in one fused kernel.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS, WIDTH, HIDDEN, EMBEDDING, MELS = 64, 2_048, 4_096, 256, 64


class Network(nn.Module):
  """Encoder, pooling and projector: (n, 1, mels, frames) to (n, 256)."""

  def __init__(self) -> None:
    super().__init__()
    blocks = [
      nn.Sequential(nn.Conv2d(i, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.MaxPool2d(2))
      for i in (1, CHANNELS, CHANNELS)
    ]
    self.blocks = nn.Sequential(*blocks)
    self.dense = nn.Sequential(
      nn.Linear(MELS // 8 * CHANNELS, WIDTH), nn.ReLU(), nn.Dropout(0.3), nn.Linear(WIDTH, WIDTH), nn.ReLU()
    )
    self.projector = nn.Sequential(
      nn.Linear(WIDTH, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, EMBEDDING, bias=False)
    )

  def forward(self, x: Tensor) -> Tensor:
    """Embeds a view."""
    x = self.blocks(x)
    frames = self.dense(x.permute(0, 3, 2, 1).flatten(2))
    return self.projector(frames.amax(1) + frames.mean(1))


def loss_of(z1: Tensor, z2: Tensor) -> Tensor:
  """Mean squared error, hinge on the standard deviations, and covariances squared."""
  n, d = z1.shape
  loss = 25 * functional.mse_loss(z1, z2)
  for z in (z1, z2):
    z = z - z.mean(0)
    std = torch.sqrt(z.square().sum(0) / (n - 1) + 1e-4)
    covariance = z.T @ z / (n - 1)
    squares = covariance.square().sum() - covariance.diagonal().square().sum()
    loss = loss + 25 * functional.relu(1 - std).mean() / 2 + squares / d
  return loss


def make_step() -> Callable[[Tensor, Tensor], Tensor]:
  """A full update as a function of two views (n, 1, mels, frames); it returns the loss before it."""
  network = Network().to(memory_format=torch.channels_last)
  adam = torch.optim.Adam(network.parameters(), 3e-4, fused=True)

  def step(view1: Tensor, view2: Tensor) -> Tensor:
    view1, view2 = (view.contiguous(memory_format=torch.channels_last) for view in (view1, view2))
    adam.zero_grad()
    loss = loss_of(network(view1), network(view2))
    loss.backward()
    adam.step()
    return loss.detach()

  return step


def start(batch_size: int, frames: int) -> Callable[[], int]:
  """The step on two views of noise, over and over."""
  views = [torch.randn(batch_size, 1, MELS, frames) for _ in range(2)]
  step = make_step()

  def work() -> int:
    step(*views).item()
    return batch_size

  return work
