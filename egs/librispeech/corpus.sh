# LibriSpeech, read English, 16 kHz; the preset says how much of it. Sourced by run.sh.
# Without --corpus-dir the parts are downloaded to data/librispeech/download.
corpus_module=librispeech
needs_corpus_dir=false
train_dir=train
dev_dir=dev
test_dirs="test-clean test-other"
default_preset_cpu=5h-cpu
default_preset_gpu=960h
prepare_options=(dev=dev-clean,dev-other test=test-clean,test-other)
case ${preset:-} in
  5h*) prepare_options=(train=train-clean-5 dev=dev-clean-2 test=) test_dirs=test ;;
  100h) prepare_options+=(train=train-clean-100) ;;
  *) prepare_options+=(train=train-clean-100,train-clean-360,train-other-500) ;;
esac
