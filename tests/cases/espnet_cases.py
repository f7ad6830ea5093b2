"""Data and configurations of toy size for ESPnet itself.  Speech is tones, one a letter."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

LETTERS = "abcdef"
TOKENS = ["<blank>", "<unk>", *LETTERS, "<space>", "<sos/eos>"]
TRANSDUCER = {
    "encoder_conf": {
        "input_conf": {"conv_size": 4, "subsampling_factor": 4},
        "body_conf": [
            {
                "block_type": "conformer", "hidden_size": 16, "linear_size": 16, "heads": 2, "conv_mod_kernel_size": 3,
                "pos_wise_dropout_rate": 0.0, "att_dropout_rate": 0.0, "conv_mod_dropout_rate": 0.0,
            }
        ],
    },
    "decoder": "rnn",
    "decoder_conf": {"embed_size": 8, "hidden_size": 8},
    "joint_network_conf": {"joint_space_size": 8},
    "model_conf": {"use_k2_pruned_loss": True, "k2_pruned_loss_args": {"prune_range": 3, "simple_loss_scaling": 0.5}},
}  # fmt: skip
HYBRID = {
    "encoder": "e_branchformer",
    "encoder_conf": {
        "output_size": 16, "attention_heads": 2, "cgmlp_linear_units": 16, "linear_units": 16, "num_blocks": 1,
        "cgmlp_conv_kernel": 3, "merge_conv_kernel": 3, "use_ffn": True, "macaron_ffn": True,
        "input_layer": "conv2d", "dropout_rate": 0.0, "positional_dropout_rate": 0.0, "attention_dropout_rate": 0.0,
        "layer_drop_rate": 0.0, "attention_layer_type": "rel_selfattn", "pos_enc_layer_type": "rel_pos",
        "rel_pos_type": "latest", "positionwise_layer_type": "linear", "use_linear_after_conv": False,
        "gradient_checkpoint_layers": [],
    },
    "decoder": "transducer",
    "decoder_conf": {"num_layers": 1, "hidden_size": 8},
    "joint_net_conf": {"joint_space_size": 8},
    "model_conf": {"ctc_weight": 0.3, "report_cer": False, "report_wer": False},
}  # fmt: skip


class World:
    """A folder with data of ESPnet's form, and its commands there."""

    def __init__(self, folder: Path):
        import soundfile

        self.folder = folder
        generator = np.random.default_rng(1)
        lines = {"wav.scp": [], "text": [], "keys": []}
        for n in range(8):
            letters = generator.choice(len(LETTERS), size=3 + n % 3)
            times = np.arange(int(0.2 * 16000)) / 16000
            sound = np.concatenate([np.sin(2 * np.pi * (300 + 250 * i) * times) for i in letters])
            wav = folder / f"utt{n}.wav"
            soundfile.write(wav, 0.3 * sound + 0.01 * generator.standard_normal(len(sound)), 16000)
            lines["wav.scp"].append(f"utt{n} {wav}")
            lines["text"].append(f"utt{n} {''.join(LETTERS[i] for i in letters)}")
            lines["keys"].append(f"utt{n} {len(sound)}")
        for name, rows in lines.items():
            (folder / name).write_text("\n".join(rows) + "\n")
        (folder / "tokens.txt").write_text("\n".join(TOKENS) + "\n")

    def options(self, name: str, model=TRANSDUCER, /, **more) -> list:
        """Of a training that takes two steps, into the folder ``name``."""
        common = {
            "token_list": str(self.folder / "tokens.txt"), "token_type": "char", "batch_type": "unsorted",
            "batch_size": 4, "max_epoch": 1, "optim": "adam", "optim_conf": {"lr": 0.002}, "num_workers": 0,
            "frontend_conf": {"n_fft": 400, "hop_length": 160}, "seed": 3, "val_scheduler_criterion": ["valid", "loss"],
            "specaug": "specaug", "specaug_conf": {"apply_time_warp": False, "time_mask_width_range": [0, 10]},
        }  # fmt: skip
        config = self.folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump({**common, **model, **more}))
        data = [f"{self.folder}/wav.scp,speech,sound", f"{self.folder}/text,text,text"]
        options = ["--config", str(config), "--output_dir", str(self.folder / name)]
        for part in ("train", "valid"):
            for file in data:
                options += [f"--{part}_data_path_and_name_and_type", file]
            options += [f"--{part}_shape_file", str(self.folder / "keys")]
        return options

    def weights(self, name: str) -> str:
        return str(self.folder / name / "1epoch.pth")

    def run(self, *words, status=0) -> str:
        """``python -m WORDS`` in the folder; stdout and stderr."""
        done = subprocess.run(
            [sys.executable, "-m", *map(str, words)], cwd=self.folder, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr
