"""The same graph in fewer bytes: of a small sparse model's file, the exporter's long names are the half.

Constants that hold the same value become one, so do nodes that compute the same from the same inputs;
values that no node reads are dropped; values and nodes inside are renamed ``v1``, ``n1``, ... in their order.  Inputs,
outputs and initializers keep their names, and every result its bits.
"""

from typing import Dict, Sequence, Set, Tuple

import onnx


def compact(graph: onnx.GraphProto) -> None:
    """Rewrite ``graph`` in place.  It must have no subgraphs (no If, Loop, Scan) and no random nodes."""
    assert not any(attribute.HasField("g") for node in graph.node for attribute in node.attribute)
    _merge_equal_nodes(graph)
    _drop_unread(graph)
    _rename(graph)


def _merge_equal_nodes(graph: onnx.GraphProto) -> None:
    outputs = {value.name for value in graph.output}
    first: Dict[Tuple, onnx.NodeProto] = {}
    renamed: Dict[str, str] = {}
    kept = []
    for node in graph.node:
        node.doc_string = ""
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        attributes = tuple(sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute))
        key = node.op_type, node.domain, tuple(node.input), attributes, len(node.output)
        same = first.setdefault(key, node)
        if same is node or outputs & set(node.output):
            kept.append(node)
        else:
            renamed.update(zip(node.output, same.output, strict=True))
    replace_nodes(graph, kept)


def _drop_unread(graph: onnx.GraphProto) -> None:
    read: Set[str] = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if read & set(node.output):
            read.update(node.input)
            kept.append(node)
    replace_nodes(graph, kept[::-1])


def _rename(graph: onnx.GraphProto) -> None:
    fixed = {value.name for value in [*graph.input, *graph.output]} | {tensor.name for tensor in graph.initializer}
    renamed: Dict[str, str] = {name: name for name in ["", *fixed]}
    for number, node in enumerate(graph.node, 1):
        node.name = f"n{number}"
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name not in renamed:
                    renamed[name] = f"v{len(renamed) - len(fixed)}"
                names[index] = renamed[name]
    assert len(set(renamed.values())) == len(renamed), "a name inside looks like one of ours"
    del graph.value_info[:]


def replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Put ``nodes``, old and new ones, in the place of all."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)
