"""Settings of the whole suite: one seed, one thread, reproducible hypothesis runs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "fxquant",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("thorough", settings.get_profile("fxquant"), max_examples=500)
settings.load_profile("fxquant")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
