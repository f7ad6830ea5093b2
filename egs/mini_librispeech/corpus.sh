# LibriSpeech's presets 5h and 5h-cpu under the name of the corpus: five hours of read English. Sourced by run.sh.
conf_corpus=librispeech
preset=${preset:-5h-cpu}
. "$(dirname "${BASH_SOURCE[0]}")/../librispeech/corpus.sh"
default_preset_gpu=5h
