"""UWC, unit-wise calibration: all layers of a Basic-Unit make up for each other's errors.

Problem: for a unit `z = f(x; W_1..W_k)` with weight errors D_i,

    dz ~= sum_i J_i D_i + 1/2 sum_i D_i' H_ii D_i + sum_{i<j} D_i' H_ij D_j

Calibrating layer by layer minimizes the first terms one by one. Below 4 bits the mixed terms are as
large: errors of one layer can be steered against those of its neighbours. So all layers of a unit
are trained together:

    min over q, s, b, a:   E || f_q(x_q) - f(x) ||^2

`x_q` is the unit's input behind the quantized prefix, `f(x)` its result in the float network. Codes
move through their latents (straight-through), scales, biases and activation steps follow. Put a
solver with a closed form before it (`BitSplit`, `GPTQ`): then few iterations are enough.

Source: Lin et al., "UWC: Unit-wise Calibration Towards Rapid Network Compression", BMVC 2021. The
abstract gives the second-order argument and the Basic-Units; which parameters are trained, the
optimizer and the partition (ir/units.py) are a reconstruction. Input mixing is an option (QDrop).

Symbols: q -> Trainable.weights[].variable, s -> theta, b -> biases, a -> phi; units: ir/units.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from fxquant.solvers.base import Scope
from fxquant.solvers.reconstruct import Reconstruction, Training


@dataclass(frozen=True, slots=True)
class UWC(Reconstruction):
    """See the module docstring; `region=Scope.LAYER` for comparison.

    Everything moves slowly: what a closed form found is good, and few images must not undo it.
    """

    training: Training = Training(
        code_rate=3e-3, scale_rate=3e-4, bias_rate=2e-2, activation_rate=3e-4
    )


@dataclass(frozen=True, slots=True)
class NetworkTuning(Reconstruction):
    """The whole network as one unit, against the logits of the float network.

    Comes last and takes small steps: what is left after the units are solved is how their errors
    add up at the output. It learns from new images made of the given ones (augment.py), since it
    would know a few hundred by heart before it gets anywhere. The last iterate is judged alone: the
    best one on mixed images comes earlier than the best one on real images does.
    """

    training: Training = Training(
        iterations=600,
        batch=32,
        positions=1 << 19,
        code_rate=2e-3,
        scale_rate=5e-4,
        bias_rate=2e-2,
        activation_rate=5e-4,
        judgements=1,
        augment=True,
    )
    region: Scope = Scope.NETWORK
