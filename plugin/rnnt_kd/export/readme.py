"""The ``README.md`` of an export: what it is, and the commands that run it."""

from typing import Any, Mapping

_FILES = """\
    encoder="encoder.onnx",
    decoder="decoder.onnx",
    joiner="joiner.onnx",
    tokens="tokens.txt",
"""
_SETTINGS = """\
    decoding_method="modified_beam_search",  # or "greedy_search"
    max_active_paths=4,
    num_threads=1,
    # hotwords_file="hotwords.txt", hotwords_score=1.5, modeling_unit="bpe", bpe_vocab="bpe.vocab",
)
samples, sampling_rate = soundfile.read("speech.wav", dtype="float32")
stream = recognizer.create_stream()
"""
_PROGRAM = """\
--encoder=encoder.onnx --decoder=decoder.onnx --joiner=joiner.onnx --tokens=tokens.txt \\
  --decoding-method=modified_beam_search --max-active-paths=4 --num-threads=1 speech.wav
```
"""
_OFFLINE = f"""\
```python
import sherpa_onnx
import soundfile

recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(
{_FILES}    model_type="transducer",
{_SETTINGS}stream.accept_waveform(sampling_rate, samples)
recognizer.decode_stream(stream)
print(stream.result.text)
```

or, with sherpa-onnx's own program,

```sh
sherpa-onnx-offline {_PROGRAM}
The encoder looks at the whole recording, so time and memory grow with the square of its length: cut recordings
of more than half a minute at pauses, as `python -m rnnt_kd.bin.transcribe` does.
"""

_STREAMING = f"""\
```python
import numpy
import sherpa_onnx
import soundfile

recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
{_FILES}{_SETTINGS}for start in range(0, len(samples), sampling_rate // 10):
    stream.accept_waveform(sampling_rate, samples[start : start + sampling_rate // 10])
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
stream.accept_waveform(sampling_rate, numpy.zeros(sampling_rate, dtype="float32"))  # or the last words are lost
stream.input_finished()
while recognizer.is_ready(stream):
    recognizer.decode_stream(stream)
print(recognizer.get_result(stream))
```

or, with sherpa-onnx's own program,

```sh
sherpa-onnx {_PROGRAM}"""

_STATIC = """\
Every size is a number and the batch is 1, as compilers for NPUs ask for.  The encoder takes {feature_frames} frames of
10 ms and gives {encoder_frames}; `model.json` names the features.  {how}

Greedy search: start with the labels -1, 0 in `decoder.onnx`; give each frame of `encoder_out`, and its output, to
`joiner.onnx`; a largest logit that is neither blank (0) nor `<unk>` is the next label, and the decoder runs again.

"""
_STATIC_OFFLINE = """A shorter utterance is padded
with zeros: `x_lens` says how many frames are its own, `encoder_out_lens` how many to read.  Cut longer ones."""
_STATIC_STREAMING = """Caches begin as zeros;
the next chunk begins {step} frames later, with `new_cached_attn` and `new_cached_conv` of this one."""


def readme(values: Mapping[str, Any]) -> str:
    """Text for what ``model.json`` says of an export."""
    zeros = f", {100 * values['sparsity_total']:.1f} % of them zero" if values["sparsity_total"] > 0.001 else ""
    kind = "A streaming" if values["streaming"] else "An offline"
    storage = "stored as " + values["weights"] + (", zeros left out" if values["sparse"] else "")
    scores = "".join(
        f"| {row['test_set']} | {row['search']}, beam {row['beam']} | {row['wer']:.2f} | {row['words']} "
        f"| {row['ins']} | {row['del']} | {row['sub']} |\n"
        for row in values["wer"]
        if row["wer"] is not None
    )
    table = (
        "| test set | search | %WER | words | ins | del | sub |\n|---|---|---|---|---|---|---|\n" + scores
        if scores
        else "The system had not been scored when it was exported.\n"
    )
    return f"""\
# {values["system"]}, for {"NPUs" if values["static"] else "sherpa-onnx"}

{kind} transducer, exported by rnnt_kd: {values["params"]:,} parameters{zeros}, {storage};
{values["vocab_size"]} BPE pieces; 16 kHz audio.  `model.json` says what it is and holds the checksum of every file.

## Run it

{_static(values) if values["static"] else _by_client(values["streaming"])}## How good it is

{_lowered(values)}The system itself, decoded by rnnt_kd:

{table}"""


def _by_client(streaming: bool) -> str:
    text_more = ", and it omits a punctuation mark at the beginning" if streaming else ""
    return f"""\
`pip install sherpa-onnx soundfile`, then in this folder

{_STREAMING if streaming else _OFFLINE}
From rnnt_kd, which checks the files first: `python -m rnnt_kd.bin.transcribe . speech.wav`.

## Text

sherpa-onnx closes words up where it makes text of tokens: it writes no blank between two Chinese, Japanese or Korean
characters, and none before punctuation, an apostrophe included ("ROCK 'N ROLL" becomes "ROCK'N ROLL"){text_more}.
Who needs the words as the model says them joins the result's `tokens`: each begins with a blank where a word begins.

## Hot words

`hotwords.txt` holds a phrase a line in the spelling of the transcripts, with ` :2.5` behind it for a score of its own;
phrases with characters that `tokens.txt` does not have are ignored.  Only modified_beam_search looks at it: by the
line above that is a comment, or by

```sh
--hotwords-file=hotwords.txt --hotwords-score=1.5 --modeling-unit=bpe --bpe-vocab=bpe.vocab
```

"""


def _static(values: Mapping[str, Any]) -> str:
    step = 4 * values["static"]["encoder_frames"]
    how = _STATIC_STREAMING.format(step=step) if values["streaming"] else _STATIC_OFFLINE
    return _STATIC.format(**values["static"], how=how)


def _lowered(values: Mapping[str, Any]) -> str:
    """Of the blank penalty, if there is one."""
    lowered = values["blank_penalty"]
    if not lowered["value"]:
        return ""
    chosen = ""
    if "errors" in lowered:
        errors = lowered["errors"]
        chosen = f""" With it greedy and beam search together made {errors[f"{lowered['value']:g}"]} errors on the
development set, without it {errors["0"]}."""
    return f"""\
In `joiner.onnx` {lowered["value"]:g} was taken off the logit of blank.{chosen}  The table below is without it.

"""
