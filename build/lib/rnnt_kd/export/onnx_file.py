"""A torch module -> one ONNX file whose initializers carry the parameters' own names.

The exporter by itself renames weights that it transposes and merges parameters that hold equal values
(every fresh LayerNorm), so a file could not be read back.  Here it folds nothing and traces a copy of the
module with distinct values; then each linear map's transposition is done on the stored weight, and the
true values are put in by name.  The names of the transposed weights stand in the file's metadata under
``transposed``, which sherpa-onnx ignores.
"""

import copy
import io
import json
import warnings
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from rnnt_kd import atomic
from rnnt_kd.errors import UserError
from rnnt_kd.export.compact import compact
from rnnt_kd.export.graphs import GraphSpec

OPSET = 13  # the first with what the models need; torch 1.13 and 2.13 both write it
AGAIN = "export the system again"
TRANSPOSED = "transposed"  # metadata key, a JSON list of parameter names


def write_graph(spec: GraphSpec, path: Path) -> None:
    """Export a module in eval mode (opset 13, float32, weights inside) and check the result.

    ``transposed`` is added to the metadata.
    Raises:
      AssertionError: the exporter dropped an input, or a parameter cannot be found in the graph.
    """
    model = onnx.load_from_string(_trace(spec))
    transposed = _store_transposed(model.graph)
    _put_values(model.graph, spec.module.state_dict(), transposed)
    found = [value.name for value in model.graph.input]
    assert found == spec.input_names, f"the exporter changed the inputs: {found} instead of {spec.input_names}"
    assert [value.name for value in model.graph.output] == spec.output_names
    compact(model.graph)
    model.producer_name, model.producer_version, model.doc_string = "rnnt_kd", "", ""
    onnx.helper.set_model_props(model, {**spec.metadata, TRANSPOSED: json.dumps(transposed)})
    onnx.checker.check_model(model, full_check=True)
    atomic.write_bytes(Path(path), model.SerializeToString(deterministic=True))


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read a file.  Raises UserError: missing, not ONNX, or its weights lie in another file."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError:
        raise UserError(path, "missing", "a file of an export", AGAIN) from None
    except Exception:  # protobuf's DecodeError, by whichever protobuf is there
        model = onnx.ModelProto()
    if not model.graph.node:
        raise UserError(path, "damaged or not an ONNX file", "a file of an export", AGAIN)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise UserError(path, "its weights lie in another file", "weights inside", AGAIN)
    return model


def metadata_of(model: onnx.ModelProto) -> Dict[str, str]:
    """``metadata_props`` as a dict."""
    return {item.key: item.value for item in model.metadata_props}


def _trace(spec: GraphSpec) -> bytes:
    stand_in = copy.deepcopy(spec.module).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for value in stand_in.state_dict().values():  # the very tensors
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator))
    file: Any = io.BytesIO()  # which torch's own types have forgotten
    more: Dict[str, Any] = {"dynamo": False} if "dynamo" in torch.onnx.export.__code__.co_varnames else {}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracer and deprecation warnings; the results are compared instead
        torch.onnx.export(
            stand_in,
            spec.example,
            file,
            opset_version=OPSET,
            do_constant_folding=False,
            input_names=spec.input_names,
            output_names=spec.output_names,
            dynamic_axes=spec.dynamic_axes,
            **more,
        )
    return file.getvalue()


def _store_transposed(graph: onnx.GraphProto) -> List[str]:
    """Replace Transpose(weight) by a weight stored transposed; returns the names, sorted."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    uses: Dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    renamed: Dict[str, str] = {}
    for node in list(graph.node):
        if node.op_type == "Transpose" and node.input[0] in weights and uses[node.input[0]] == 1:
            weight = weights[node.input[0]]
            order = next(list(attribute.ints) for attribute in node.attribute if attribute.name == "perm")
            assert order == [1, 0], (weight.name, order)
            weight.CopyFrom(numpy_helper.from_array(_values(weight).T.copy(), weight.name))
            renamed[node.output[0]] = weight.name
            graph.node.remove(node)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    return sorted(renamed.values())


def _put_values(graph: onnx.GraphProto, values: Mapping[str, Tensor], transposed: Sequence[str]) -> None:
    weights = {tensor.name: tensor for tensor in graph.initializer}
    missing = sorted(set(values) - set(weights))
    assert not missing, f"parameters that the exporter lost: {missing}"
    for name, value in values.items():
        array = value.detach().cpu().numpy()
        array = np.ascontiguousarray(array.T if name in transposed else array)
        assert array.shape == tuple(weights[name].dims), (name, array.shape, tuple(weights[name].dims))
        weights[name].CopyFrom(numpy_helper.from_array(array, name))


def _values(tensor: onnx.TensorProto) -> np.ndarray:
    return numpy_helper.to_array(tensor)
