"""The benchmark of packed weights: all forms compute the same, each from every copy in turn."""

from __future__ import annotations

import numpy as np

from benchmarks.weight_forms import FORMS, cold_call, layer, measure
from fxquant import targets
from tests.backend.kernel_harness import require
from tvm_backend.emit.conv_weights import WeightForm

TARGET = targets.X86_AVX2


def test_forms_take_turns_and_agree() -> None:
    require(TARGET)
    timings = measure((64, 40), TARGET, ring=1 << 14, rounds=2, calls=1)
    assert list(timings) == [form.bits for form in FORMS] == [8, 4, 2]
    assert all(timing.median > 0 for timing in timings.values())


def test_the_layer_multiplies() -> None:
    require(TARGET)
    call, result = cold_call(layer((64, 40), TARGET, WeightForm(2)), TARGET, ring=1)
    call()
    weight = np.random.default_rng(0).integers(-2, 2, (40, 64))
    assert (result.numpy()[:40] == weight @ (np.arange(64) - 128)).all()
