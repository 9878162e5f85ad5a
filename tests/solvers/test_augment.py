"""Augmentation: where the new images come from, who labels them, and where it is used."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant.solvers import UWC, NetworkTuning, Solver, Training, reconstruct
from fxquant.solvers.augment import augmented
from tests.solvers.nets import NEAREST, X, error, residual


def numbered(count: int = 6, height: int = 5, width: int = 7) -> Tensor:
    """Every pixel says which image, row and column it is."""
    grid = torch.meshgrid(*(torch.arange(n) for n in (count, height, width)), indexing="ij")
    return torch.stack(grid, 1).float()


@pytest.mark.parametrize("seed", range(20))
def test_pixels_stay_in_their_row_and_move_to_the_mirrored_column_at_most(seed: int) -> None:
    images = numbered()
    new = augmented(images, torch.Generator().manual_seed(seed))
    image, row, column = new.unbind(1)
    place = images[0]
    assert torch.equal(row, place[1].expand_as(row))
    straight, mirrored = column == place[2], column == 6 - place[2]
    assert bool((straight | mirrored).all())
    for number, one in enumerate(image):  # its own pixels, and a box of one other image
        assert len({number, *one.flatten().tolist()}) <= 2
        other = (one != number).nonzero()
        if len(other):
            low, high = other.amin(0), other.amax(0)
            assert int((high - low + 1).prod()) == len(other)


def test_images_are_mirrored_and_mixed_and_none_is_lost() -> None:
    images, rng = numbered(), torch.Generator().manual_seed(0)
    draws = [augmented(images, rng) for _ in range(50)]
    mixed = sum(len(one.unique()) > 1 for d in draws for one in d[:, 0])
    mirrored = sum(bool((one[2] != images[0, 2]).any()) for d in draws for one in d)
    assert 100 < mixed < 300 and 100 < mirrored < 300
    assert torch.equal(images, numbered())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_memory_format_is_kept_and_a_seed_repeats(layout: torch.memory_format) -> None:
    images = numbered().contiguous(memory_format=layout)
    first, second = (augmented(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.is_contiguous(memory_format=layout)


TRAINING = Training(iterations=60, batch=8, held_back=0, augment=True)


def quantized(model: nn.Module, x: Tensor, *steps: Solver) -> fxquant.Quantized:
    config = fxquant.Config(default=fxquant.OpConfig(3, 8))
    return fxquant.quantize(model, [x], config=config, solver=(*NEAREST, *steps), progress=False)


@pytest.mark.parametrize("held_back", [0, 8])
def test_new_images_are_labelled_by_the_float_network(
    monkeypatch: pytest.MonkeyPatch, held_back: int
) -> None:
    """A network that sees nothing but grey in training knows what the model says to grey.

    It is judged on grey too: on the samples themselves, which the steps before have seen, the start
    would win.
    """
    monkeypatch.setattr(reconstruct, "augmented", lambda x, rng: torch.full_like(x, 0.25))
    model, grey = residual(), torch.full((1, 3, 8, 8), 0.25)
    before = error(quantized(model, X), model, grey)
    tuning = NetworkTuning(replace(TRAINING, held_back=held_back))
    after = error(quantized(model, X, tuning), model, grey)
    assert after < 0.3 * before


def test_only_images_the_network_is_given_are_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not inner values of units, not rows of features."""
    shapes = []

    def spy(x: Tensor, rng: torch.Generator) -> Tensor:
        shapes.append(x.shape[1:])
        return augmented(x, rng)

    monkeypatch.setattr(reconstruct, "augmented", spy)
    quantized(residual(), X, UWC(TRAINING))
    assert len(shapes) == TRAINING.iterations and set(shapes) == {(3, 8, 8)}
    features = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    quantized(features, torch.randn(32, 6), NetworkTuning(TRAINING))
    assert len(shapes) == TRAINING.iterations
