"""Recipes: steps on whole networks, before or around quantization."""

from fxquant.recipes.allocation import Method
from fxquant.recipes.bits import allocate_bits, pareto_front
from fxquant.recipes.coding_length import CodingLength, coding_length, coding_rate
from fxquant.recipes.named import RECIPES, recipe
from fxquant.recipes.result import Allocation, LayerBits, ParetoFront
from fxquant.recipes.sensitivity import Sensitivity

__all__ = [
    "RECIPES",
    "Allocation",
    "CodingLength",
    "LayerBits",
    "Method",
    "ParetoFront",
    "Sensitivity",
    "allocate_bits",
    "coding_length",
    "coding_rate",
    "pareto_front",
    "recipe",
]
