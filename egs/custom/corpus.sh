# Your own Kaldi data directories: ./run.sh --train-dir D --dev-dir D --test-dirs "D D".
# Sourced by run.sh; the directories come from the command line.
corpus_module=
needs_corpus_dir=false
default_preset_cpu=cpu
default_preset_gpu=gpu
prepare_options=()
