"""An ONNX node as its importer sees it; what the importer did not look at is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnx import defs, helper

from fxquant.errors import UnsupportedError

# They matter in training only, or repeat what the operands and results tell.
_WITHOUT_EFFECT = frozenset(
    "broadcast consumed_inputs is_test kernel_shape momentum num_outputs ratio round_mode saturate "
    "seed storage_order".split()
)


@dataclass(frozen=True, slots=True, eq=False)
class OnnxCall:
    """An ONNX node as its importer sees it.

    Attributes:
        op: Operator.
        name: Name of the node, or of its result.
        inputs: Names of its inputs, "" where absent.
        outputs: Names of its results.
        attributes: By name.
        opset: Version of the operator set.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    _read: set[str] = field(default_factory=set)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute; strings are decoded."""
        self._read.add(name)
        return _decoded(self.attributes.get(name, default))

    def unsupported(self, why: str) -> UnsupportedError:
        """The error of a node that cannot be imported."""
        return UnsupportedError(
            f"{self.op} of this form cannot be imported", where=f"ONNX node {self.name}", why=why
        )

    def refuse_unread(self) -> None:
        """Refuse the node if it has an attribute, not at its default, that nobody asked for.

        Raises:
            UnsupportedError: It has one: what was imported computes something else.
        """
        for name in sorted(self.attributes.keys() - self._read - _WITHOUT_EFFECT):
            known = defs.get_schema(self.op, self.opset).attributes
            default = known[name].default_value if name in known else None
            value = self.attributes[name]
            if not (default and default.type and helper.get_attribute_value(default) == value):
                raise self.unsupported(f"its attribute {name} = {_decoded(value)} is not supported")


def _decoded(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
