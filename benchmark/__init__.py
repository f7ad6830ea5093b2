"""How fast and how big: a laboratory beside the package, not installed with it.

    python -m benchmark.loss         time and memory of the loss, beside other people's
    python -m benchmark.train_step   whole training steps: without distillation, with a teacher online, from its cache
    python -m benchmark.ddp          training steps that several processes take together
    python -m benchmark.decode       searches on real speech: ours, plain loops, sherpa-onnx
    python -m benchmark.infer        encoders in engines, one utterance at a time, and what zeros are worth
    python -m benchmark.data         sources of very many cuts: memory, start, order, a step's wait

They are made of the same parts:

    turns       starts a process for each subject, and lets the processes take turns
    worker      such a process: it makes its inputs, and measures a pass whenever it is told to
    measure     seconds and peak memory of one pass
    rows        medians and ratios of what was measured
    options     options, the name of the machine, and the report: tables, JSON, Markdown

A peer of the loss is a file ``peers/<name>_peer.py``, an engine a file ``engines/<name>_engine.py``.
"""

import rnnt_kd.bin  # noqa: F401  (answers Ctrl-C while torch is imported)
