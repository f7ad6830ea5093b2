# Mini LibriSpeech, 5 hours of read English, 16 kHz. Sourced by local/recipe.sh.
# Without --corpus-dir it is downloaded to data/mini_librispeech/download.
corpus_module=mini_librispeech
needs_corpus_dir=false
train_dir=train
dev_dir=dev
test_dirs=test
default_preset_cpu=cpu
default_preset_gpu=gpu
prepare_options=()
