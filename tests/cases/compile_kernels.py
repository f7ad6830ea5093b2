"""Compile the Triton kernels for GPUs that are not here: ``python compile_kernels.py lattice 80 90``.

Triton brings its own assembler, so that no GPU is needed; but Python must have been started without
TRITON_INTERPRET.  Prints one line a kernel: GPU, name, bytes of shared memory a program needs.
"""

import sys

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

INTEGERS = ("labels", "am_rows", "lm_rows", "rows", "first_node", "last_node", "starts", "boundary")
SINGLES = "bias blank_logits label_logits log_rest blank_grad label_grad rest_grad column_sums weight_grad out".split()


def compile_for(gpu, kernel, dtype, constants, num_warps, num_stages=3):
    """Arguments by name: single letters and sizes are int32, the others pointers."""
    names = [parameter.name for parameter in kernel.params]
    signature, aligned = {}, {}
    for i, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in INTEGERS:
            signature[name] = "*i64"
        elif name in SINGLES:
            signature[name] = "*fp32"
        elif name in POINTERS:
            signature[name] = f"*{dtype}"
        else:
            signature[name] = "i32"
        if signature[name].startswith("*") or name in ("Jp", "Cp"):
            aligned[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, {k: v for k, v in constants.items() if k in names}, aligned)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = compile_kernel(source, target=GPUTarget("cuda", gpu, 32), options=options)
    print(gpu, kernel.__name__, compiled.metadata.shared)


POINTERS = "log_blank log_label scores shares blank_reads label_reads am lm hidden weight grads input_grad".split()


def lattice(gpu):
    from rnnt_kd.lattice import triton_kernels

    for lanes, num_warps in ((8, 1), (128, 4)):
        for regular, constrained, exact in ((True, False, False), (True, False, True), (False, True, False)):
            constants = dict(REGULAR=regular, CONSTRAINED=constrained, EXACT=exact, LANES=lanes)
            for kernel in (triton_kernels.sum_paths, triton_kernels.count_reads):
                compile_for(gpu, kernel, "fp64" if exact else "fp32", constants, num_warps)


def node_scores(gpu):
    from rnnt_kd.losses.node_scores import triton_impl, triton_kernels

    for dtype, sizes in (("bf16", triton_impl.HALF), ("fp32", triton_impl.SINGLE)):
        rows, columns, depth, num_warps, num_stages = sizes
        constants = dict(HAS_BIAS=True, PRECISION="ieee", NODES=rows, CLASSES=columns, WIDTH=columns, DEPTH=depth)
        for name in ("split", "fill_grads", "inputs_grad"):
            compile_for(gpu, getattr(triton_kernels, name), dtype, constants, num_warps, num_stages)
        tile = {**constants, "CLASSES": rows}
        compile_for(gpu, triton_kernels.add_weight_grad, dtype, tile, num_warps, num_stages)
        small = dict(ROWS=16, NODES=16, WIDTH=128, PRECISION="ieee")
        compile_for(gpu, triton_kernels.make_hidden, dtype, small, 4)
        compile_for(gpu, triton_kernels.add_to_rows, dtype, {**small, "NODES": 32}, 4)


if __name__ == "__main__":
    for gpu in sys.argv[2:]:
        globals()[sys.argv[1]](int(gpu))
