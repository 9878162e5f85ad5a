"""Configurations of the accuracy tables: mixed widths cost what uniform ones do."""

import pytest
import torch
from torch import Tensor, nn

import fxquant
from benchmarks.configurations import MIXED, PRESETS, configuration


class Net(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 8), (8, 16), (16, 16), (16, 8))]
        super().__init__(*layers, nn.Flatten(), nn.Linear(8 * 16, 5))


@pytest.fixture
def samples() -> Tensor:
    return torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str, samples: Tensor) -> None:
    assert configuration(name, Net(), samples) == getattr(fxquant, name)


@pytest.mark.parametrize("name", MIXED)
def test_mixed_ones_spend_at_most_four_bits(name: str, samples: Tensor) -> None:
    net = Net()
    config = configuration(name, net, samples)
    chosen = {n: rule.weight_bits for n, rule in config.names.items() if rule is not None}
    weights = {n: net.get_parameter(f"{n}.weight").numel() for n in chosen}
    assert list(chosen) == ["1", "2", "3"]  # the first and the last layer keep 8 bits
    assert sum(chosen[n] * weights[n] for n in chosen) <= 4 * sum(weights.values())
    # The input of the last layer keeps 8 bits.
    bits = [rule.activation_bits for rule in config.names.values() if rule]
    assert bits == [int(name[3])] * 2 + [8]
