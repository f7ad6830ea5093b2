"""For ``asr.sh --python "python3 -m rnnt_kd.espnet.run"``: a Python whose ESPnet trains with our tasks.

``espnet2.bin.asr_transducer_train`` and ``espnet2.bin.asr_train`` become ``KdTransducerTask`` and, for transducers,
``KdASRTask``; every other module or script runs as it is, and ESPnet's hybrid models can be made without
warp-transducer.
"""

import runpy
import sys
from typing import List

TASKS = {"espnet2.bin.asr_transducer_train": "KdTransducerTask", "espnet2.bin.asr_train": "KdASRTask"}


def main(words: List[str]) -> None:
    if words[:1] != ["-m"]:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
        return
    module, sys.argv = words[1], words[1:]
    if module.startswith("espnet2.bin.asr"):
        from rnnt_kd.espnet import tasks

        tasks.provide_warp_transducer()
        if module in TASKS:
            getattr(tasks, TASKS[module]).main()
            return
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
