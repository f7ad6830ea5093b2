# CMU AN4: spelled names, numbers, dates, commands; 16 kHz; 74 + 10 speakers. Sourced by run.sh.
corpus_module=an4
needs_corpus_dir=true
train_dir=train
dev_dir=dev
test_dirs="test"
default_preset_cpu=cpu
default_preset_gpu=gpu
prepare_options=()
