"""Recipes with the default's time train longer and are otherwise those of the same name."""

from __future__ import annotations

import pytest

from benchmarks.recipes import RECIPES


@pytest.mark.parametrize("name", ["adaround", "brecq", "qdrop"])
def test_long_recipes_differ_in_the_iterations_of_codes_alone(name: str) -> None:
    short, long = RECIPES[name](), RECIPES[f"{name}-long"]()
    assert short and long
    one, iterations = next(
        (repr(s), s.training.iterations) for s in long if "code_rate=0.01" in repr(s)
    )
    assert iterations > 300
    assert repr(short) == repr(long).replace(
        one, one.replace(f"iterations={iterations}", "iterations=300")
    )
