# Speech made on this machine by espeak-ng; 16 kHz, 55 voices in English accents. Sourced by run.sh.
corpus_module=synth
needs_corpus_dir=false
train_dir=train
dev_dir=dev
test_dirs=test
default_preset_cpu=cpu
default_preset_gpu=cpu
prepare_options=()
[ "${preset:-}" != smoke ] || prepare_options=(minutes=1.5 dev_minutes=0.5 test_minutes=0.5)
