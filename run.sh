#!/usr/bin/env bash
# Train a dense RNN-T teacher and sparse students, without and with distillation over the
# pruned lattice; decode and score them; print the table of word error rates; export them
# for sherpa-onnx, and print the table of their sizes; make a page of it all, EXP_DIR/report/index.html.
#
#   ./run.sh                                            # everything, on speech made on this machine
#   ./run.sh --corpus an4 --corpus-dir DIR              # a corpus of egs/
#   ./run.sh --train-dir D --dev-dir D --test-dirs "D"  # your own Kaldi data directories
#
# See ./run.sh --help.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$root/local/recipe.sh"

corpus=                 # a folder of egs/ (default: synth)
corpus_dir=             # where the corpus is; left out, LibriSpeech is downloaded to DATA_DIR/download
train_dir=              # your own Kaldi data directories instead of a corpus:
dev_dir=                #   all three options together
test_dirs=              #   one or more, in quotes
data_dir=               # stage 0 writes Kaldi data directories here (default: data/<corpus>)
exp_dir=                # everything else is written here (default: exp/<corpus>)
stage=0                 # first stage: 0 1 2 3 4 5 6 7 8 9
stop_stage=9            # last stage
preset=                 # a file egs/<corpus>/conf/<preset>.yaml (default: the corpus's, by device)
seed=1                  # of data, weights and batches
nj=$(default_jobs)      # processes side by side
device=auto             # auto, cpu or cuda
lattice_backend=auto    # auto, k2, torch or triton
kd_variant=             # what teacher and student are compared on (default: the preset's)
kd_weighting=           # how lattice nodes are weighted (default: the preset's)
kd_scale=               # weight of the teacher term (default: the preset's)
kd_ranges=              # teacher: distil from its cache; student: it runs in every step; both (default: the preset's)
sparsities="0.6 0.9"    # of the sparse students
structures="unstructured" # of their zeros, every one with every sparsity: unstructured, blocks such as 16x1; 2:4 at 0.5
streaming=false         # streaming students as well
kd_shift=               # and such that learn from a lattice moved later by these numbers of frames (40 ms)
experiment=             # systems and seeds of a file conf/experiments/<experiment>.yaml of the corpus; stages 5 to 7 make these
jobs=                   # of the experiment's systems side by side (default: nj)
print_jobs=false        # print a command line for each system and seed that the experiment lacks, for a cluster's queue
env=auto                # Python environment: auto, k2, torch2 or none
allow_pipes=false       # run the shell pipes of wav.scp
dry_run=false           # print the commands, run none

parse_options "$@"
check_options

#---------------------------------------------------------------------------------------------------
if [ "$dry_run" = false ]; then
  exec 7>&1
  [ "$print_jobs" = false ] || exec 7>&2 # stdout is for the jobs alone
  "$root/local/setup_env.sh" --env "$env" >&7
  exec 7>&-
  unset RNNT_KD_ENV
  [ "$env" != none ] || RNNT_KD_ENV=none
  . "$root/local/path.sh"
  [ "$print_jobs" = true ] || lock_folder "$exp_dir"
fi
read_preset
teacher_dir=$exp_dir/teacher kd_cache=$exp_dir/kd_cache
experiment_command=(python -m rnnt_kd.bin.experiment --experiment "$experiment_file" --config "$preset_file"
  --exp-dir "$exp_dir" --dev-set "$(set_name "$dev_dir")" --test-dirs "$(xargs <<<"$test_dirs")" --corpus "$corpus"
  --teacher-seed "$seed" --device "$device" --lattice-backend "$lattice_backend" --jobs "${jobs:-$nj}")
train=(python -m rnnt_kd.bin.train --config "$preset_file" --train-cuts "$exp_dir/cuts/train.jsonl.gz"
  --dev-cuts "$exp_dir/cuts/$(set_name "$dev_dir").jsonl.gz" --bpe-dir "$exp_dir/bpe"
  --seed "$seed" --device "$device" --lattice-backend "$lattice_backend")

if [ "$print_jobs" = true ]; then
  run "${experiment_command[@]}" --print-jobs
  exit
fi

if wants 0; then
  say 0 "data directories"
  if [ "$corpus" = custom ]; then
    for dir in $train_dir $dev_dir $test_dirs; do
      run "$root"/local/validate_data_dir.sh "$dir" $pipes
    done
  else
    run "$root"/local/prepare_corpus.sh --corpus "$corpus_module" ${corpus_dir:+--corpus-dir "$corpus_dir"} \
      --out-dir "$data_dir" --seed "$seed" --nj "$nj" ${prepare_options[@]+"${prepare_options[@]/#/--option=}"}
  fi
fi

if wants 1; then
  say 1 "cuts and features"
  # shellcheck disable=SC2086
  run "$root"/local/compute_features.sh --data-dir "$train_dir" --out-dir "$exp_dir/cuts" --name train \
    --speed-perturb $features_speed_perturb --nj "$nj" $pipes
  for dir in $dev_dir $test_dirs; do
    run "$root"/local/compute_features.sh --data-dir "$dir" --out-dir "$exp_dir/cuts" --name "$(set_name "$dir")" --nj "$nj" $pipes
  done
fi

if wants 2; then
  say 2 "byte-pair encoding"
  run "$root"/local/train_bpe.sh --text "$train_dir/text" --vocab-size "$text_vocab_size" --model-type "$text_model_type" \
    --out-dir "$exp_dir/bpe" $shrink_vocab
fi

if wants 3; then
  say 3 "dense teacher"
  run "${train[@]}" --role teacher --name teacher --exp-dir "$teacher_dir"
fi

if wants 4; then
  if [ "$kd_ranges" = student ]; then
    say 4 "no teacher's cache: with --kd-ranges student the teacher runs in every step"
  else
    say 4 "teacher's cache"
    for job in $(seq "$nj"); do
      add_job "cache $job" python -m rnnt_kd.bin.cache_teacher --config "$preset_file" --teacher-dir "$teacher_dir" \
        --cuts "$exp_dir/cuts/train.jsonl.gz" --bpe-dir "$exp_dir/bpe" --cache-dir "$kd_cache" \
        --job "$job" --nj "$nj" --device "$device" --lattice-backend "$lattice_backend"
    done
    run_jobs
  fi
fi

if [ -n "$experiment" ]; then
  steps=$(for step in "5 train" "6 decode" "7 score"; do ! wants "${step%% *}" || echo "${step#* }"; done | xargs)
  if [ -n "$steps" ]; then
    say "5 to 7" "experiment $experiment: $steps"
    run "${experiment_command[@]}" --steps "$steps"
  fi
  if wants 9; then
    say 9 "report"
    make_report
  fi
  list_results
  exit
fi

if wants 5; then
  say 5 "students: $(student_names)"
  for system in $(student_names); do
    system_options "$system"
    add_job "$system" "${train[@]}" "${system_options[@]}"
  done
  run_jobs
fi

if wants 6; then
  say 6 "decode"
  for system in teacher $(student_names); do
    for dir in $test_dirs; do
      name=$(set_name "$dir")
      add_job "$system $name" python -m rnnt_kd.bin.decode --system-dir "$(system_dir "$system")" \
        --cuts "$exp_dir/cuts/$name.jsonl.gz" --bpe-dir "$exp_dir/bpe" --test-set "$name" --device "$device" \
        --search "$decoding_search" --beam "$decoding_beam" --batch-seconds "$decoding_batch_seconds" \
        --out-dir "$(decode_dir "$system" "$name")"
    done
  done
  run_jobs
fi

if wants 7; then
  say 7 "score"
  for dir in $test_dirs; do
    name=$(set_name "$dir")
    for system in teacher $(student_names); do
      twin=$(twin_of "$system")
      run "$root"/local/score.sh $([ "$twin" = "$system" ] || echo --baseline-decode-dir "$(decode_dir "$twin" "$name")") \
        "$dir" "$(decode_dir "$system" "$name")"
      [ "$(role_of "$system")" != streaming_student ] \
        || run python -m rnnt_kd.bin.delay --decode-dir "$(decode_dir "$system" "$name")" \
          --baseline-decode-dir "$(decode_dir teacher "$name")"
    done
  done
  run python -m rnnt_kd.bin.summarize --corpus "$corpus" --systems "teacher $(student_names)" --exp-dir "$exp_dir" --test-sets "$(test_sets)"
fi

if wants 8; then
  read -r check_dir _ <<<"$test_dirs"
  say 8 "export, compared with sherpa-onnx on $(set_name "$check_dir")"
  for system in teacher $(student_names); do
    add_job "$system export" python -m rnnt_kd.bin.export "$(system_dir "$system")" --bpe-dir "$exp_dir/bpe" \
      --out "$exp_dir/export/$system" --check-data-dir "$check_dir" $pipes \
      $([ "$(role_of "$system")" != streaming_student ] || echo --streaming)
  done
  run_jobs
  run python -m rnnt_kd.bin.size_table --exp-dir "$exp_dir" --bpe-dir "$exp_dir/bpe" --data-dir "$check_dir" $pipes \
    --systems "teacher $(student_names)" --search "$decoding_search" --beam "$decoding_beam"
fi

if wants 9; then
  say 9 "report"
  for dir in $test_dirs; do
    name=$(set_name "$dir")
    run python -m rnnt_kd.bin.dump_lattices --exp-dir "$exp_dir" --bpe-dir "$exp_dir/bpe" --test-set "$name" \
      --cuts "$exp_dir/cuts/$name.jsonl.gz" --systems "$(pictured_systems)" --search "$decoding_search" --device "$device" \
      --lattice-backend "$lattice_backend" $pipes
  done
  make_report --systems "teacher $(student_names)"
fi

list_results
