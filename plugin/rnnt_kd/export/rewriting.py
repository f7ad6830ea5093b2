"""ONNX graphs rewritten in place: weights computed from something smaller, and fewer bytes around them.

Nodes that depend on constants only, onnxruntime (and with it sherpa-onnx) runs once, when it loads the file.
"""

from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

import numpy as np
import onnx
from onnx import numpy_helper


class Rewriter:
    """The weights of a model, being rewritten.

    Attributes:
      model:   the ONNX model; its nodes may be edited.
      weights: name -> values of the float and integer initializers, in their order; ``pop`` one that something else
               makes now.
    """

    def __init__(self, model: onnx.ModelProto):
        self.model = model
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._before: List[onnx.NodeProto] = []
        self._after: List[onnx.TensorProto] = []
        self._constants: Dict[Any, str] = {}
        self._taken = {name for node in all_nodes(model.graph) for name in (*node.input, *node.output)}
        self._taken |= {*self.weights, *(tensor.values.name for tensor in model.graph.sparse_initializer)}
        self._count = 0

    def fresh(self) -> str:
        """A short name that nothing has."""
        while True:
            self._count += 1
            name = f"p{self._count}"
            if name not in self._taken:
                self._taken.add(name)
                return name

    def constant(self, values: Union[np.ndarray, np.generic]) -> str:
        """The name of an initializer with these values; equal ones are stored once."""
        values = np.asarray(values)
        key = values.dtype.str, values.shape, values.tobytes()
        if key not in self._constants:
            self._constants[key] = self.fresh()
            self._after.append(numpy_helper.from_array(values, self._constants[key]))
        return self._constants[key]

    def compute(self, operator: str, inputs: Sequence[str], output: Optional[str] = None, **attributes) -> str:
        """Add a node in front of all others; returns the name of its one output."""
        return self.compute_many(operator, inputs, [output or self.fresh()], **attributes)[0]

    def compute_many(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes) -> List[str]:
        """The same with any number of outputs."""
        self._before.append(onnx.helper.make_node(operator, list(inputs), list(outputs), **attributes))
        return list(outputs)

    def reshape(self, value: str, *sizes: int) -> str:
        """A node that gives ``value`` these sizes; -1: what is left."""
        return self.compute("Reshape", [value, self.constant(np.array(sizes, dtype=np.int64))])

    def state_shape(self, name: str, element_type: int, shape: Sequence[int]) -> None:
        """Write down the sizes of a value that no shape inference can tell."""
        self.model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, element_type, shape))

    def rename(self, name: str) -> str:
        """Give a weight a short name, in every node that reads it; returns that name."""
        short = self.fresh()
        rename_inputs(self.model.graph, {name: short})
        return short

    def finish(self) -> None:
        """Put nodes and initializers into the model, and check it."""
        graph = self.model.graph
        replace_nodes(graph, [*self._before, *graph.node])
        for index in reversed(range(len(graph.initializer))):
            if graph.initializer[index].name not in self.weights:
                del graph.initializer[index]
        graph.initializer.extend(self._after)
        plain = not graph.sparse_initializer  # whose type ONNX's own shape inference refuses in a MatMul
        onnx.checker.check_model(self.model, full_check=plain)


def compact(graph: onnx.GraphProto) -> None:
    """The same graph in fewer bytes: of a small sparse model's file, the exporter's long names are the half.

    Constants that hold the same value become one, so do nodes that compute the same from the same inputs; values that
    no node reads are dropped; values inside are renamed ``v1``, ``v2``, ... in their order, and nodes lose their names.
    Inputs, outputs and initializers keep theirs, and every result its bits.  It must have no subgraphs (no If, Loop,
    Scan) and no random nodes.
    """
    assert not has_subgraphs(graph)
    _merge_equal_nodes(graph)
    read, kept = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if read & set(node.output):
            read.update(node.input)
            kept.append(node)
    replace_nodes(graph, kept[::-1])
    _shorten_names(graph)


def has_subgraphs(graph: onnx.GraphProto) -> bool:
    """Are there If, Loop or Scan?"""
    return any(attribute.HasField("g") for node in graph.node for attribute in node.attribute)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Those of its subgraphs, too, which may read what stands around them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def rename_inputs(graph: onnx.GraphProto, names: Dict[str, str]) -> None:
    """Let every node read ``names[name]`` where it read ``name``."""
    for node in all_nodes(graph):
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)


def replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Put ``nodes``, old and new ones, in the place of all."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)


def _merge_equal_nodes(graph: onnx.GraphProto) -> None:
    outputs: Set[str] = {value.name for value in graph.output}
    first: Dict[Tuple, onnx.NodeProto] = {}
    renamed: Dict[str, str] = {}
    kept = []
    for node in graph.node:
        node.doc_string = ""
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        attributes = tuple(sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute))
        same = first.setdefault((node.op_type, node.domain, tuple(node.input), attributes, len(node.output)), node)
        if same is node or outputs & set(node.output):
            kept.append(node)
        else:
            renamed.update(zip(node.output, same.output, strict=True))
    replace_nodes(graph, kept)


def _shorten_names(graph: onnx.GraphProto) -> None:
    fixed = {value.name for value in [*graph.input, *graph.output]} | {tensor.name for tensor in graph.initializer}
    renamed: Dict[str, str] = {name: name for name in ["", *fixed]}
    for node in graph.node:
        node.name = ""
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name not in renamed:
                    renamed[name] = f"v{len(renamed) - len(fixed)}"
                names[index] = renamed[name]
    assert len(set(renamed.values())) == len(renamed), "a name inside looks like one of ours"
    del graph.value_info[:]
