"""Distillation in ESPnet: tasks of theirs with our loss and, if one is named, a teacher.

    python -m rnnt_kd.espnet --config train.yaml --kd_conf teacher_model=exp/teacher/valid.loss.best.pth ...   # ESPnet2
    task: rnnt_kd.espnet.KdTransducerTask                                                                      # ESPnet3

``tasks.KdTransducerTask`` and ``tasks.KdASRTask`` are loaded on first use, and ESPnet with them.
"""

__all__ = ["KdASRTask", "KdTransducerTask"]


def __getattr__(name: str):
    if name in __all__:
        from rnnt_kd.espnet import tasks

        return getattr(tasks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
