"""``task: rnnt_kd.espnet.KdTransducerTask`` in ESPnet3's own recipe mini_an4, which its wheel holds with its speech."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("espnet3", reason="ESPnet is not here (tests/run.sh --env espnet)")

SPH2PIPE = f"""#!{sys.executable}
import io, soundfile, sys
out = io.BytesIO()
soundfile.write(out, *soundfile.read(sys.argv[-1]), format="WAV")
sys.stdout.buffer.write(out.getvalue())
"""


def test_the_recipe_trains_a_teacher_and_then_a_student(tmp_path):
    recipes = importlib.util.find_spec("egs3").submodule_search_locations[0]
    folder = shutil.copytree(f"{recipes}/mini_an4/esp2_asr", tmp_path / "recipe")
    program = folder / "bin" / "sph2pipe"
    program.parent.mkdir()
    program.write_text(SPH2PIPE)
    program.chmod(0o755)
    config = (folder / "conf" / "training_transducer_asr_conformer_rnnt.yaml").read_text()
    config = config.replace(
        "espnet3.systems.esp2_asr.src.transducer_task.ASRTransducerTask", "rnnt_kd.espnet.KdTransducerTask"
    )
    config = config.replace("  encoder: conformer\n", "  model_conf: {use_k2_pruned_loss: true}\n")

    def train(name, *stages, kd=""):
        (folder / "conf" / f"{name}.yaml").write_text(config.replace("  decoder_conf:\n", f"{kd}  decoder_conf:\n"))
        words = ["run.py", "--stages", *stages, "--training_config", f"conf/{name}.yaml"]
        environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
        )
        return done.returncode, done.stdout + done.stderr

    status, said = train("teacher", "create_dataset", "train_tokenizer", "collect_stats", "train")
    assert status == 0 and "train/loss_simple" in said and "loss_kd" not in said, said[-3000:]
    kd = "  kd_conf: {teacher_model: exp/teacher/step1.ckpt, scale: 0.5}\n"
    status, said = train("student", "train", kd=kd)
    assert status == 0 and "train/loss_kd" in said and (folder / "exp" / "student" / "step1.ckpt").is_file(), said[
        -3000:
    ]
    status, said = train("nobody", "train", kd=kd.replace("step1", "step9"))
    assert status != 0 and "exp/teacher/step9.ckpt: no such file" in said.splitlines()[-1], said[-3000:]
