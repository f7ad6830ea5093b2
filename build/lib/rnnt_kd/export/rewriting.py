"""Replace the weights of an ONNX graph by nodes that compute them from something smaller.

Such nodes depend on constants only: onnxruntime (and with it sherpa-onnx) runs them once, when it loads the
file, and keeps the result.
"""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np
import onnx
from onnx import numpy_helper

from rnnt_kd import atomic
from rnnt_kd.export.compact import replace_nodes
from rnnt_kd.export.onnx_file import load_onnx


class Rewriter:
    """One file, being rewritten.

    Attributes:
      model:   the ONNX model; its nodes may be edited.
      weights: name -> values of the float and integer initializers, in their order.
    """

    def __init__(self, path: Path):
        self.model = load_onnx(path)
        self.weights: Dict[str, np.ndarray] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer
        }
        self._before: List[onnx.NodeProto] = []
        self._after: List[onnx.TensorProto] = []
        self._constants: Dict[Any, str] = {}
        self._taken = {name for node in self.model.graph.node for name in (*node.input, *node.output)}
        self._taken |= {*self.weights, *(tensor.values.name for tensor in self.model.graph.sparse_initializer)}
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

    def state_shape(self, name: str, element_type: int, shape: Sequence[int]) -> None:
        """Write down the sizes of a value that no shape inference can tell."""
        self.model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, element_type, shape))

    def rename(self, name: str) -> str:
        """Give a weight a short name, in every node that reads it; returns that name."""
        short = self.fresh()
        for node in self.model.graph.node:
            for index, read in enumerate(node.input):
                if read == name:
                    node.input[index] = short
        return short

    def drop_weight(self, name: str) -> np.ndarray:
        """Forget an initializer (something else makes the value now); returns its values."""
        return self.weights.pop(name)

    def write(self, path: Path) -> None:
        """Check and write the file."""
        graph = self.model.graph
        replace_nodes(graph, [*self._before, *graph.node])
        for index in reversed(range(len(graph.initializer))):
            if graph.initializer[index].name not in self.weights:
                del graph.initializer[index]
        graph.initializer.extend(self._after)
        plain = not graph.sparse_initializer  # whose type ONNX's own shape inference refuses in a MatMul
        onnx.checker.check_model(self.model, full_check=plain)
        atomic.write_bytes(Path(path), self.model.SerializeToString(deterministic=True))
