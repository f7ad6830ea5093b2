"""A torch module -> one ONNX file whose initializers carry the parameters' own names.

The exporter by itself renames weights that it transposes and merges parameters that hold equal values
(every fresh LayerNorm), so a file could not be read back.  Here it folds nothing and traces a copy of the
module with distinct values; then each linear map's transposition is done on the stored weight, and the
true values are put in by name.  The names of the transposed weights stand in the file's metadata under
``transposed``, which sherpa-onnx ignores.
"""

import copy
import functools
import io
import json
import warnings
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from onnxruntime.transformers.fusion_layernorm import FusionLayerNormalization
from onnxruntime.transformers.onnx_model import OnnxModel
from torch import Tensor

from rnnt_kd import atomic
from rnnt_kd.errors import UserError
from rnnt_kd.export.graphs import GraphSpec, batch_axis, stored
from rnnt_kd.export.rewriting import compact, rename_inputs, replace_nodes
from rnnt_kd.files import parse_json

OPSET = 13  # the first with what the models need; torch 1.13 and 2.13 both write it
OPSET_OF_NORMS, IR_OF_NORMS = 17, 8  # the first with LayerNormalization; else the nodes here mean the same in both
AGAIN = "export the system again"
TRANSPOSED = "transposed"  # metadata key, a JSON list of parameter names


def write_graph(spec: GraphSpec, path: Path) -> None:
    """Export a module in eval mode (float32, weights inside) and check the result.

    ``transposed`` is added to the metadata.  With dynamic axes it is opset 17, whose LayerNormalization is one node
    instead of nine; without, opset 13, and sizes and what depends on sizes alone are constants.
    Raises:
      AssertionError: the exporter dropped an input.
      UserError: a parameter is not in the graph, or an operator has no form there.
    """
    model = onnx.load_from_string(_trace(spec))
    transposed = _store_transposed(model.graph)
    _put_values(model.graph, stored(spec.module.state_dict()), transposed)
    found = [value.name for value in model.graph.input]
    assert found == spec.input_names, f"the exporter changed the inputs: {found} instead of {spec.input_names}"
    assert [value.name for value in model.graph.output] == spec.output_names
    if spec.dynamic_axes:
        _fuse_norms(model)
    else:
        _fold_sizes(model)
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


def transposed_in(path: Path, model: onnx.ModelProto) -> List[str]:
    """The weights that are stored transposed, as its metadata say.  Raises UserError: they do not."""
    try:
        names = parse_json(metadata_of(model).get(TRANSPOSED, ""))
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        problem = f"metadata '{TRANSPOSED}' is missing or no list of names"
        raise UserError(path, problem, "a file written by rnnt_kd", AGAIN)
    return names


def session(path: Path, content: Optional[bytes] = None) -> onnxruntime.InferenceSession:
    """One thread, quiet, for a file (or ``content`` in its place).  Raises UserError where onnxruntime refuses it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(content or str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(path, f"onnxruntime does not load it ({first_line(error)})", "", AGAIN) from None


class OneByOne:
    """A session of a file for one utterance of a fixed length, which takes any number of utterances up to that length.

    Raises: UserError: onnxruntime refuses the file.  ValueError, by ``run``: a longer utterance.
    """

    def __init__(self, path: Path):
        self._session = session(path)
        self.get_inputs = self._session.get_inputs

    def run(self, _: None, feeds: Mapping[str, np.ndarray]) -> List[np.ndarray]:
        """All outputs; padding behind the longest utterance is cut off."""
        rows = [self._run_row(feeds, row) for row in range(len(next(iter(feeds.values()))))]
        names = [value.name for value in self._session.get_outputs()]
        found = [np.concatenate(parts, batch_axis(name)) for name, parts in zip(names, zip(*rows), strict=True)]
        return [found[0][:, : found[1].max()], found[1]] if names[-1] == "encoder_out_lens" else found

    def _run_row(self, feeds: Mapping[str, np.ndarray], row: int) -> List[np.ndarray]:
        values = {}
        for value in self.get_inputs():
            one = feeds[value.name].take([row], batch_axis(value.name))
            values[value.name] = np.pad(
                one, [(0, all_of - n) for all_of, n in zip(value.shape, one.shape, strict=True)]
            )
        return self._session.run(None, values)


def run(path: Path, feeds: Dict[str, np.ndarray], content: Optional[bytes] = None) -> List[np.ndarray]:
    """All outputs.  Raises UserError where onnxruntime refuses the file or the inputs."""
    loaded = session(path, content)
    try:
        return loaded.run(None, feeds)
    except Exception as error:
        raise UserError(path, f"onnxruntime does not run it ({first_line(error)})", "", AGAIN) from None


@functools.cache
def multiplies_integers() -> bool:
    """Are this onnxruntime's products of 8-bit integers right on this CPU?

    Those of 1.23 are not on a CPU with AMX, where the inner size is a multiple of 64 and the outer one none of 16.
    """
    generator, helper = np.random.default_rng(0), onnx.helper
    a, b = (generator.integers(0, 256, shape, np.uint8) for shape in ((40, 64), (64, 24)))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "integers",
        [value("a", onnx.TensorProto.UINT8, a.shape)],
        [value("y", onnx.TensorProto.INT32, (40, 24))],
        [numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=7)
    (product,) = run(Path("integers.onnx"), {"a": a}, model.SerializeToString())
    return np.array_equal(product, a.astype(np.int32) @ b.astype(np.int32))


def first_line(error: Exception) -> str:
    """Of what a library says."""
    return str(error).strip().split("\n")[0][:200]


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
        try:
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
        except torch.onnx.errors.OnnxExporterError as error:
            problem = f"torch cannot write it as ONNX ({first_line(error)})"
            raise UserError("encoder", problem, f"operators of opset {OPSET}", "write it with others") from None
    return file.getvalue()


def _fuse_norms(model: onnx.ModelProto) -> None:
    """LayerNormalization in the place of the nine nodes that a traced one is."""
    whole = OnnxModel(model)
    FusionLayerNormalization(whole).apply()
    whole.topological_sort()
    if any(node.op_type == "LayerNormalization" for node in model.graph.node):
        model.opset_import[0].version, model.ir_version = OPSET_OF_NORMS, IR_OF_NORMS


def _fold_sizes(model: onnx.ModelProto) -> None:
    """Replace what depends on no input and no weight by its value; every size of the inputs is a number."""
    graph, known = model.graph, {""}  # "": an input that is left out
    for node in graph.node:
        if node.op_type == "Shape" or known.issuperset(node.input):
            known.update(node.output)
    left = [node for node in graph.node if not known.issuperset(node.output)]
    read = sorted({name for node in left for name in node.input if name in known} - {""})
    probe = onnx.ModelProto.FromString(model.SerializeToString())
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in read)
    feeds = {}  # anything: sizes alone matter
    for value in graph.input:
        tensor = value.type.tensor_type
        shape = [size.dim_value for size in tensor.shape.dim]
        feeds[value.name] = np.ones(shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    values = run(Path("graph"), feeds, probe.SerializeToString())[len(graph.output) :]
    made = [
        onnx.helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in zip(read, values, strict=True)
    ]
    replace_nodes(graph, [*made, *left])


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
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).T.copy(), weight.name))
            renamed[node.output[0]] = weight.name
            graph.node.remove(node)
    rename_inputs(graph, renamed)
    return sorted(renamed.values())


def _put_values(graph: onnx.GraphProto, values: Mapping[str, Tensor], transposed: Sequence[str]) -> None:
    weights = {tensor.name: tensor for tensor in graph.initializer}
    missing = sorted(set(values) - set(weights))
    if missing:  # the exporter melts a BatchNorm into the convolution before it
        problem = f"torch's exporter leaves no parameter {missing[0]} in the graph"
        raise UserError("encoder", problem, "modules whose parameters stay", "write it with others")
    for name, value in values.items():
        array = value.detach().cpu().numpy()
        array = np.ascontiguousarray(array.T if name in transposed else array)
        assert array.shape == tuple(weights[name].dims), (name, array.shape, tuple(weights[name].dims))
        weights[name].CopyFrom(numpy_helper.from_array(array, name))
