"""Train with ESPnet2's ``asr_transducer`` task, distilled: its options, and --kd_conf."""

from rnnt_kd.espnet.tasks import KdTransducerTask

if __name__ == "__main__":
    KdTransducerTask.main()
