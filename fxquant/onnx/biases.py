"""MatMul and Add are one linear layer, if nothing else reads the product.

That is known only once the whole graph is made, with all its readers and results.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node


def join_biases(module: GraphModule) -> None:
    """Make the constant that is added to a linear layer's result its bias."""
    for node in module.graph.find_nodes(op="call_function", target=operator.add):
        for product, constant in (node.args, node.args[::-1]):
            if _bias_fits(module, product, constant):
                _join(module, node, product, constant)
                break


def _bias_fits(module: GraphModule, product: Any, constant: Any) -> bool:
    if not (isinstance(product, Node) and isinstance(constant, Node)):
        return False
    if product.op != "call_module" or constant.op != "get_attr" or len(product.users) != 1:
        return False
    layer = module.get_submodule(str(product.target))
    if not isinstance(layer, nn.Linear) or layer.bias is not None:
        return False
    return module.get_buffer(str(constant.target)).shape == (layer.out_features,)


def _join(module: GraphModule, node: Node, product: Node, constant: Node) -> None:
    layer, bias = module.get_submodule(str(product.target)), str(constant.target)
    layer.bias = nn.Parameter(module.get_buffer(bias).clone(), requires_grad=False)
    node.replace_all_uses_with(product)
    module.graph.erase_node(node)
    if not constant.users:
        module.graph.erase_node(constant)
        delattr(module, bias)
