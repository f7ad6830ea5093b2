#!/usr/bin/env bash
# Train a dense RNN-T teacher and sparse students, without and with distillation over the pruned lattice; decode and
# score them; print the table of word error rates; export them for sherpa-onnx; make a page of it all.
#
#   ./run.sh                                            # everything, on speech made on this machine
#   ./run.sh --corpus an4 --corpus-dir DIR              # a corpus of egs/
#   ./run.sh --train-dir D --dev-dir D --test-dirs "D"  # your own Kaldi data directories
# A shell of its own: what others export for theirs (functions, options, a locale, CDPATH) is not for this one.
case $- in *p*) ;; *) exec env -u BASH_ENV -u SHELLOPTS -u BASHOPTS -u CDPATH -u GREP_OPTIONS LC_ALL=C bash -p "${BASH_SOURCE:-$0}" "$@" ;; esac
set -euo pipefail
root=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
. "$root/local/parse_options.sh"

corpus= corpus_dir= train_dir= train_cuts= bpe_model= dev_dir= data_dir= exp_dir= conf_corpus=
test_dirs=() stage=0 stop_stage=9 preset= experiment=default fold= set=() seed= data_root=() allow_storage=()
cmd= decode_nj=1 gpu_inference=true
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1) nj=$((cores < 4 ? cores : 4))
noise_dir= rir_dir= unlabelled_dir= device=auto nproc= ngpu= num_nodes=1 lattice_backend=auto env=auto allow_pipes=false print_jobs=false dry_run=false
experiments() { local name; for name in $(corpora); do echo "  $name: $(names_in "$root/egs/$name/conf/experiments" .yaml)"; done; }
corpora() { echo $(for name in "$root"/egs/*/corpus.sh; do basename "${name%/*}"; done); }
usage="./run.sh [--name value | --name=value | --flag] ...: a teacher and its students, from data directories to one page

  --corpus           a folder of egs/: $(corpora) [synth]
  --corpus-dir       where the corpus is; without it, LibriSpeech is downloaded to DATA_DIR/download
  --train-dir        your own Kaldi data directories instead of a corpus:
  --dev-dir            all three options together
  --test-dirs          one, or several in quotes; may be repeated
  --train-cuts       in the place of --train-dir: cuts with text, a Lhotse manifest (icefall's) or a folder in Shar format
  --data-dir         stage 0 writes Kaldi data directories here [data/CORPUS]
  --exp-dir          everything else is written here [exp/CORPUS]
  --bpe-model        in the place of stage 2's: the bpe.model of an icefall recipe, or of another run
  --stage            first stage [$stage]: 0 data directories  1 cuts and features  2 BPE  3 teachers  4 their words and caches
  --stop-stage       last stage [$stop_stage]: 5 students  6 decode  7 score  8 export  9 report
  --preset           a file egs/CORPUS/conf/PRESET.yaml: models, training, decoding [the corpus's, by device]
  --experiment       a file egs/CORPUS/conf/experiments/EXPERIMENT.yaml: systems and seeds [$experiment]
  --fold             of an experiment with folds (cross-validation): make this one only, 1, 2 ...
  --set              SYSTEM.KEY=VALUE, may be repeated: a value of these files, for example sparse90_kd.kd.scale=2
  --noise-dir        noise of far speech (--preset far): MUSAN, a Kaldi data directory or any tree of audio [pink, babble]
  --rir-dir          its room responses, the same: of RIRS_NOISES, simulated_rirs [drawn]
  --unlabelled-dir   a Kaldi data directory without text: teachers write down what is said there, students learn it, too
  --seed             of made speech, and of every system that names no seeds [as in the experiment]
  --nj               processes side by side; with --cmd, jobs that share the features of a set, or a cache [$nj]
  --decode-nj        jobs that share a decoding [$decode_nj]
  --cmd              runs the jobs of stages 1, 3 to 6 and 8 as Kaldi's run.pl does: \"local/slurm_cmd.sh --mem 8G\" [this machine]
  --gpu-inference    decode on a GPU where systems are trained on one [$gpu_inference]
  --device           auto, cpu or cuda [$device]
  --ngpu             GPUs of this machine that train a system together, the same as --device cuda --nproc [1]
  --nproc            processes that train a system together [1]
  --num-nodes        machines with so many each, in an allocation of Slurm [$num_nodes]
  --lattice-backend  auto, k2, torch or triton [$lattice_backend]
  --env              Python environment: auto, k2, torch2 or none [$env]
  --allow-pipes      run the shell pipes of wav.scp [$allow_pipes]
  --data-root        may be repeated: a folder that cuts and experiment.json may name files in, beside their own
  --allow-storage    may be repeated: a storage of Lhotse (lilcom_url, kaldiio) whose features may be pipes and URLs
  --print-jobs       run nothing; print a line for each missing job of the stages that are given, or, without any, for each
                       missing system and seed: for any other scheduler
  --dry-run          print the commands, run none
  --config           a file with such options, a line each

Experiments:
$(experiments)

A finished stage is skipped; a changed setting runs again what depends on it.  A run that was interrupted, even by
kill -9, goes on where it stopped when the same command is given again."
parse_options "$@"

#--- what is asked for ------------------------------------------------------------------------------
one_of --env "$env" "auto k2 torch2 none"
one_of --device "$device" "auto cpu cuda"
one_of --stage "$stage" "0 1 2 3 4 5 6 7 8 9"
one_of --stop-stage "$stop_stage" "0 1 2 3 4 5 6 7 8 9"
[ "$stage" -le "$stop_stage" ] || die "--stage $stage comes after --stop-stage $stop_stage; expected --stage <= --stop-stage"
[[ ${fold:-1} =~ ^[1-9][0-9]*$ ]] || die "--fold: '$fold'; expected a whole number, at least 1"
[[ ${seed:-0} =~ ^[0-9]+$ ]] || die "--seed: '$seed'; expected a whole number"
[ -z "$nproc$ngpu" ] || [ -z "$nproc" ] || [ -z "$ngpu" ] || die "--nproc and --ngpu exclude each other"
[ -z "$ngpu" ] || { [ "$device" != cpu ] || die "--ngpu and --device cpu exclude each other"; nproc=$ngpu device=cuda; }
nproc=${nproc:-1}
for name in nj decode_nj nproc num_nodes; do
  [[ ${!name} =~ ^[1-9][0-9]*$ ]] || die "--${name//_/-}: '${!name}'; expected a whole number, at least 1"
done
test_list=() own_dirs=("$train_dir" "$dev_dir")
for value in ${test_dirs[@]+"${test_dirs[@]}"}; do # a folder, blanks and all, or several
  if [ -d "$value" ]; then words=("$value"); else read -rd '' -a words <<<"$value" || true; fi # also over several lines
  test_list+=(${words[@]+"${words[@]}"})
done
if [ -n "$train_dir$train_cuts$dev_dir${test_dirs[*]-}" ]; then
  [ -z "$train_dir" ] || [ -z "$train_cuts" ] || die "--train-dir and --train-cuts exclude each other"
  [ -n "$train_dir$train_cuts" ] && [ -n "$dev_dir" ] && [ -n "${test_list[*]-}" ] || die "--train-dir, --dev-dir and --test-dirs go together; give all three"
  [ "${corpus:-custom}" = custom ] || die "--corpus $corpus and --train-dir exclude each other"
  corpus=custom
fi
corpus=${corpus:-synth}
one_of --corpus "$corpus" "$(corpora)"
asked_preset=$preset
unset test_dirs
gpu() { [ "$device" = cuda ] || { [ "$device" = auto ] && has_gpu; }; }
. "$root/egs/$corpus/corpus.sh" # its parts may depend on the preset, its presets on the device: read twice
[ -n "$asked_preset" ] || { if gpu; then preset=$default_preset_gpu; else preset=$default_preset_cpu; fi; . "$root/egs/$corpus/corpus.sh"; }
conf=$root/egs/${conf_corpus:-$corpus}/conf
one_of --preset "$preset" "$(names_in "$conf" .yaml base)"
one_of --experiment "$experiment" "$(names_in "$conf/experiments" .yaml)"
exp_dir=${exp_dir:-$root/exp/$corpus} data_dir=${data_dir:-$root/data/$corpus}
if [ "$corpus" = custom ]; then
  [ -n "${own_dirs[0]}$train_cuts" ] || die "--corpus custom needs your Kaldi data directories: --train-dir, --dev-dir and --test-dirs"
  train_dir=${own_dirs[0]} dev_dir=${own_dirs[1]}
else
  [ "$needs_corpus_dir" = false ] || [ -n "$corpus_dir" ] || die "--corpus $corpus needs --corpus-dir DIR: where the corpus is (see egs/$corpus/README.md)"
  train_dir=$data_dir/$train_dir dev_dir=$data_dir/$dev_dir
  for name in $test_dirs; do test_list+=("$data_dir/$name"); done
fi

#--- the environment, and one run at a time in a folder ---------------------------------------------
if [ "$dry_run" = false ]; then
  [ "$print_jobs" = false ] || exec 3>&1 1>&2 # stdout is for the jobs alone
  "$root/local/setup_env.sh" --env "$env"
  RNNT_KD_ENV=${env#auto} # two runs may go on side by side
  . "$root/local/path.sh"
  [ "$print_jobs" = false ] || exec 1>&3 3>&-
  mkdir -p "$exp_dir" 2>/dev/null || die "$exp_dir: cannot be made; expected a folder that can be written; choose another --exp-dir"
  if [ "$print_jobs" = false ] && command -v flock >/dev/null 2>&1; then # it goes with the last process: of a killed run, in a moment
    exec 9>>"$exp_dir/.lock${fold:+.fold$fold}" || die "$exp_dir: cannot be written; choose another --exp-dir"
    flock -w 15 9 || [ $? != 1 ] || die "$exp_dir: another run is at work there; wait for it to end, or choose another --exp-dir"
  fi
fi
run() { # run COMMAND ...: print it under --dry-run, else run it
  if [ "$dry_run" = true ]; then printf '+'; printf ' %q' "$@"; echo; else RNNT_KD_SHELL=$$ "$@"; fi
}
pipes= failed=; [ "$allow_pipes" = false ] || pipes=--allow-pipes
yaml() { local quote="'"; printf "'%s'" "${1//$quote/$quote$quote}"; } # a text, whatever it holds
experiment() { # experiment WORD ...: rnnt_kd.bin.experiment with these words at the end
  run python -m rnnt_kd.bin.experiment --experiment "$conf/experiments/$experiment.yaml" --config "$conf/$preset.yaml" --exp-dir "$exp_dir" \
    ${train_dir:+--train-dir "$train_dir"} ${train_cuts:+--train-cuts "$train_cuts"} ${bpe_model:+--bpe-model "$bpe_model"} --dev-dir "$dev_dir" --test-dirs "${test_list[@]}" --corpus "$corpus" --nj "$nj" --decode-nj "$decode_nj" ${cmd:+--cmd "$cmd"} --gpu-inference "$gpu_inference" $pipes ${data_root[@]+"${data_root[@]/#/--data-root=}"} ${allow_storage[@]+"${allow_storage[@]/#/--allow-storage=}"} \
    --device "$device" --nproc "$nproc" --num-nodes "$num_nodes" --lattice-backend "$lattice_backend" ${fold:+--fold "$fold"} ${seed:+--set "seeds=[$seed]"} ${noise_dir:+--set "features.noise_dir=$(yaml "$noise_dir")"} ${rir_dir:+--set "features.rir_dir=$(yaml "$rir_dir")"} ${unlabelled_dir:+--set "features.unlabelled_dir=$(yaml "$unlabelled_dir")"} ${set[@]+"${set[@]/#/--set=}"} "$@"
}
stage() { # stage NUMBER TITLE COMMAND ...; what fails after stage 4 keeps no other system from its figures
  { [ "$stage" -le "$1" ] && [ "$1" -le "$stop_stage" ]; } || return 0
  printf '\n=== stage %s: %s  (%s/%s, %s, %s)\n' "$1" "$2" "$corpus" "$preset" "$experiment" "$(date +%H:%M:%S)"
  "${@:3}" || { [ "$1" -gt 4 ] || exit 1; failed+=" $1"; }
}
data() {
  local dir
  [ -z "$unlabelled_dir" ] || run python -m rnnt_kd.bin.validate_data_dir "$unlabelled_dir" --unlabelled $pipes || return
  if [ "$corpus" = custom ]; then
    for dir in ${train_dir:+"$train_dir"} "$dev_dir" "${test_list[@]}"; do run python -m rnnt_kd.bin.validate_data_dir "$dir" $pipes || return; done
  else
    run python -m rnnt_kd.bin.prepare_corpus --corpus "$corpus_module" ${corpus_dir:+--corpus-dir "$corpus_dir"} --out-dir "$data_dir" \
      --seed "${seed:-1}" --nj "$nj" ${prepare_options[@]+"${prepare_options[@]/#/--option=}"}
  fi
}
trap 'echo "interrupted; run the same command again to go on from here" >&2; exit 130' INT

#--- stages -----------------------------------------------------------------------------------------
{ # bash reads this to its end before it begins: who updates the file in the meantime disturbs no run
if [ "$print_jobs" = true ]; then
  [[ $given == *stage* ]] || { experiment --print-jobs; exit; }
  steps=(data features bpe teacher "pseudo_label cache" train decode score export report)
  if [ "$stage" = 0 ]; then # from any folder, as the lines of the others
    echo "# data"; python=$(python -c 'from rnnt_kd.bin.experiment_steps import printed; print(printed([]))') || exit
    dry_run=true data | while IFS= read -r line; do echo "$python${line#+ python}"; done
  fi
  steps=("${steps[@]:stage:stop_stage-stage+1}")
  experiment --print-jobs --steps "${steps[*]#data}"
  exit
fi
[ "$dry_run" = true ] || experiment --steps "" # wrong files and values end here, before anything is made
stage 0 "data directories" data
stage 1 "cuts and features" experiment --steps features
stage 2 "byte-pair encoding" experiment --steps bpe
stage 3 "dense teachers" experiment --steps teacher
stage 4 "teachers' words and caches" experiment --steps "pseudo_label cache"
stage 5 "students" experiment --steps train
stage 6 "decode" experiment --steps decode
stage 7 "score" experiment --steps score
stage 8 "export, compared with sherpa-onnx" experiment --steps export
stage 9 "report" experiment --steps report
[ -z "$failed" ] || die "stage$failed: not everything was made; see the lines above; correct it and run the same command again"
exit
}
