# Sourced by run.sh: options, checks, stages, jobs.  Needs $root; option variables are the ones
# that run.sh assigns before parse_options.

existing_stages="0 1 2 3 4 5 6 7 8 9"
on_off_options="allow_pipes dry_run print_jobs streaming"

die() { echo "error: $*" >&2; exit 1; }

default_jobs() { local n; n=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); echo $((n < 4 ? n : 4)); }

#--- options ---------------------------------------------------------------------------------------
option_names() { sed -n 's/^\([a-z_]*\)=.*# .*/\1/p' "$root/run.sh"; }

parse_options() {
  local names name
  names=$(option_names)
  while [ $# -gt 0 ]; do
    case $1 in --help|-h) usage; exit 0 ;; esac
    name=${1#--}; name=${name//-/_}
    if [ "$1" = "$name" ] || ! grep -qxF -- "$name" <<<"$names"; then
      die "unknown option '$1'; expected one of:$(printf ' --%s' ${names//_/-}) --help"
    fi
    if grep -qwF -- "$name" <<<"$on_off_options"; then
      printf -v "$name" true; shift
    else
      [ $# -ge 2 ] || die "$1 needs a value"
      printf -v "$name" '%s' "$2"; shift 2
    fi
  done
}

usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$root/run.sh" | sed '/^See .*--help/d'
  echo "Options:"
  sed -n 's/^\([a-z_]*\)=\([^#]*[^# ]\)\{0,1\} *# \(.*\)/\1|\2|\3/p' "$root/run.sh" | while IFS='|' read -r name value text; do
    case $value in '$('*) value=$(default_jobs) ;; esac
    value=${value//\"/}
    grep -qwF -- "$name" <<<"$on_off_options" && value=
    printf '  --%-16s %s%s\n' "${name//_/-}" "$text" "${value:+ [$value]}"
  done
  cat <<EOF

Corpora:       $(corpora)
Experiments:   $(experiments)
KD variants:   $(kd_variants)
KD weightings: $(kd_weightings)
Stages:        0 data directories   1 cuts and features   2 BPE   3 teacher   4 teacher's cache   5 students
               6 decode   7 score   8 export   9 report

A finished stage is skipped; a changed setting runs again what depends on it.  A run that was
interrupted, even by kill -9, goes on where it stopped when the same command is given again.
EOF
}

# Names on the command line are things on disk.
corpora() { (cd "$root/egs" && ls -d */corpus.sh | cut -d/ -f1 | xargs); }
presets() { (cd "$root/egs/$corpus/conf" 2>/dev/null && ls ./*.yaml 2>/dev/null | sed 's|^\./||; s|\.yaml$||' | xargs); }
experiments_of() { (cd "$root/egs/$1/conf/experiments" 2>/dev/null && ls ./*.yaml 2>/dev/null | sed 's|^\./||; s|\.yaml$||' | xargs); }
experiments() { # paper (an4), smoke (synth)
  local name
  for name in $(corpora); do [ -z "$(experiments_of "$name")" ] || echo "$(experiments_of "$name") ($name)"; done | paste -s -d, | sed 's/,/, /g'
}
functions_of() { sed -n 's/^def \([a-z][a-z_0-9]*\)(.*/\1/p' "$1" | grep -v '^available_' | tr _ - | sort | xargs; }
kd_variants() { functions_of "$root/plugin/rnnt_kd/losses/kd_variants.py"; }
kd_weightings() { functions_of "$root/plugin/rnnt_kd/losses/kd_weightings.py"; }

one_of() { # one_of OPTION VALUE CHOICES
  [[ -n $2 && " $3 " == *" $2 "* ]] || die "$1: '$2'; expected one of: ${3// /, }"
}
whole_number() { # whole_number OPTION VALUE LEAST
  [[ $2 =~ ^[0-9]+$ && $((10#$2)) -ge $3 ]] || die "$1: '$2'; expected a whole number, at least $3"
}
number_between() { # number_between OPTION VALUE LOW HIGH: LOW <= VALUE < HIGH
  [[ $2 =~ ^[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$ ]] && awk -v x="$2" -v a="$3" -v b="$4" 'BEGIN { exit !(x >= a && x < b) }' \
    || die "$1: '$2'; expected a number from $3 to below $4"
}

simple_path() { # simple_path OPTION PATH: lists of directories are split at blanks, so no name may hold one
  local forbidden='[][:space:]*?%[]'
  [ "$1" != --test-dirs ] || forbidden='[]*?%[]'
  [[ ! $2 =~ $forbidden ]] || die "$1: '$2'; expected a path without blanks and without any of * ? % [ ]; link to it or choose another"
}

check_options() {
  one_of --env "$env" "auto k2 torch2 none"
  one_of --device "$device" "auto cpu cuda"
  one_of --lattice-backend "$lattice_backend" "auto $(cd "$root/plugin/rnnt_kd/lattice" && ls ./*_backend.py | sed 's|^\./||; s|_backend\.py$||' | xargs)"
  local option
  for option in stage stop_stage; do
    one_of "--${option//_/-}" "${!option}" "$existing_stages"
  done
  [ "$stage" -le "$stop_stage" ] || die "--stage $stage comes after --stop-stage $stop_stage; expected --stage <= --stop-stage"
  whole_number --seed "$seed" 0
  whole_number --nj "$nj" 1
  [ -z "$kd_variant" ] || one_of --kd-variant "$kd_variant" "$(kd_variants)"
  [ -z "$kd_weighting" ] || one_of --kd-weighting "$kd_weighting" "$(kd_weightings)"
  [ -z "$kd_ranges" ] || one_of --kd-ranges "$kd_ranges" "teacher student both"
  [ -z "$kd_scale" ] || number_between --kd-scale "$kd_scale" 0 1e9
  [ -n "$sparsities" ] || die "--sparsities: empty; expected fractions, for example \"0.6 0.9\""
  local sparsity
  for sparsity in $sparsities; do number_between --sparsities "$sparsity" 0.01 1; done
  [ -n "$structures" ] || die "--structures: empty; expected names, for example \"unstructured 16x1\""
  local structure
  for structure in $structures; do known_structure "$structure"; done
  [ -z "$(xargs -n 1 <<<"$structures" | sort | uniq -d)" ] || die "--structures: '$structures'; expected different names"
  local shift
  for shift in $kd_shift; do whole_number --kd-shift "$shift" 1; done
  [ -z "$kd_shift" ] || [ "$streaming" = true ] || die "--kd-shift $kd_shift without --streaming; expected both: a shift is for streaming students"
  [ -z "$(student_names | xargs -n 1 | sort | uniq -d)" ] \
    || die "--sparsities: '$sparsities', --kd-shift: '$kd_shift'; expected different numbers"

  if [ -n "$train_dir$dev_dir$test_dirs" ]; then
    [ -n "$train_dir" ] && [ -n "$dev_dir" ] && [ -n "${test_dirs//[[:space:]]/}" ] \
      || die "--train-dir, --dev-dir and --test-dirs go together; give all three"
    train_dir=${train_dir%/} dev_dir=${dev_dir%/} test_dirs=$(sed 's|/\{1,\}\([[:space:]]\)|\1|g; s|/*$||' <<<"$test_dirs" | xargs)
    [ -z "$corpus" ] || [ "$corpus" = custom ] || die "--corpus $corpus and --train-dir exclude each other"
    corpus=custom
  fi
  corpus=${corpus:-synth}
  one_of --corpus "$corpus" "$(corpora)"
  if [ "$corpus" = custom ] && [ -z "$train_dir" ]; then
    die "--corpus custom needs your Kaldi data directories: --train-dir, --dev-dir and --test-dirs"
  fi
  data_dir=${data_dir:-$root/data/$corpus}
  exp_dir=${exp_dir:-$root/exp/$corpus}
  for option in train_dir dev_dir test_dirs data_dir exp_dir; do simple_path "--${option//_/-}" "${!option}"; done

  # The preset is known before corpus.sh is read, because a corpus may choose its parts by it.
  local chosen=$preset custom_train=$train_dir custom_dev=$dev_dir custom_tests=$test_dirs
  . "$root/egs/$corpus/corpus.sh"
  if [ -z "$chosen" ]; then
    if uses_gpu; then preset=$default_preset_gpu; else preset=$default_preset_cpu; fi
    . "$root/egs/$corpus/corpus.sh"
  fi
  one_of --preset "$preset" "$(presets)"
  check_experiment
  preset_file=$root/egs/$corpus/conf/$preset.yaml
  if [ "$corpus" = custom ]; then
    train_dir=$custom_train dev_dir=$custom_dev test_dirs=$custom_tests
    data_dir=$exp_dir
    shrink_vocab=--shrink-to-fit
  else
    train_dir=$data_dir/$train_dir dev_dir=$data_dir/$dev_dir
    test_dirs=$(printf "$data_dir/%s " $test_dirs)
    shrink_vocab=
    if [ "$needs_corpus_dir" = true ]; then
      [ -n "$corpus_dir" ] || die "--corpus $corpus needs --corpus-dir DIR: where the corpus is (see egs/$corpus/README.md)"
    fi
  fi
  local dir seen=" train "
  for dir in $(printf '%s\n' "$dev_dir" $test_dirs | sort -u); do
    [[ $seen != *" $(set_name "$dir") "* ]] \
      || die "--test-dirs: two directories have the name '$(set_name "$dir")'; expected different last parts; rename one or link to it"
    seen+="$(set_name "$dir") "
  done
  pipes=; [ "$allow_pipes" = false ] || pipes=--allow-pipes
}

check_experiment() { # sets experiment_file
  [ -z "$jobs" ] || whole_number --jobs "$jobs" 1
  experiment_file=
  if [ -z "$experiment" ]; then
    [ -z "$jobs" ] && [ "$print_jobs" = false ] || die "--jobs and --print-jobs are for an experiment; expected --experiment NAME with them"
    return 0
  fi
  [ -n "$(experiments_of "$corpus")" ] || die "--experiment: '$experiment'; egs/$corpus/conf/experiments holds none; write one (see README.md)"
  one_of --experiment "$experiment" "$(experiments_of "$corpus")"
  experiment_file=$root/egs/$corpus/conf/experiments/$experiment.yaml
}

known_structure() { # as sparsity/structures.py: unstructured, RxC, or N:M with N < M
  [ "$1" = unstructured ] || [[ $1 =~ ^[1-9][0-9]{0,5}x[1-9][0-9]{0,5}$ ]] \
    || { [[ $1 =~ ^([1-9][0-9]{0,5}):([1-9][0-9]{0,5})$ ]] && [ "${BASH_REMATCH[1]}" -lt "${BASH_REMATCH[2]}" ]; } \
    || die "--structures: '$1'; expected one of: unstructured, 1x16, 16x1, 4x4, 16x16, 2:4, any other block RxC, or N:M with N < M"
}

uses_gpu() {
  [ "$device" = cuda ] || { [ "$device" = auto ] && command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; }
}

#--- what a stage is made of -----------------------------------------------------------------------
wants() { [ "$stage" -le "$1" ] && [ "$1" -le "$stop_stage" ]; }

say() { printf '\n=== stage %s: %s  (%s, %s)\n' "$1" "$2" "$corpus/$preset" "$(date +%H:%M:%S)"; }

run() { # run COMMAND ...: print it under --dry-run, else run it
  if [ "$dry_run" = true ]; then printf '+'; printf ' %q' "$@"; echo; return; fi
  "$@" || exit $?
}

# The folder's name stands for the set in file names: data/test -> test.
set_name() { basename "$1"; }
test_sets() { local dir; for dir in $test_dirs; do set_name "$dir"; done | xargs; }

make_report() { run python -m rnnt_kd.bin.report --exp-dir "$exp_dir" --corpus "$corpus" --test-sets "$(test_sets)" "$@"; }

read_preset() { # sets features_speed_perturb, text_vocab_size, ... from the preset
  local keys="features.speed_perturb text.vocab_size text.model_type decoding.search decoding.beam decoding.batch_seconds" key
  local ranges=$kd_ranges variant=$kd_variant
  if [ "$dry_run" = true ]; then
    for key in $keys; do printf -v "${key//./_}" '%s' "<$key of $preset>"; done
    kd_ranges=teacher kd_variant=
  else
    local assignments
    assignments=$(python -m rnnt_kd.bin.preset --config "$preset_file" $keys kd.ranges kd.variant) || exit 1
    eval "$assignments"
  fi
  kd_ranges=${ranges:-$kd_ranges}
  if [ "$kd_ranges" != student ] && needs_logits "${variant:-$kd_variant}"; then
    die "--kd-variant ${variant:-$kd_variant} compares whole logits, which no cache holds; expected --kd-ranges student with it"
  fi
  kd_variant=$variant
}

needs_logits() { # as losses/choices.py: by the name of the variant's first argument
  [ -n "$1" ] && grep -A 1 "^def ${1//-/_}(" "$root/plugin/rnnt_kd/losses/kd_variants.py" | tr -d '\n' | grep -qE '\( *logits:'
}

student_names() { _student_names | xargs; }
_student_names() { # each without distillation, from the teacher's cache (_kd), with an online teacher (_kd_online)
  local student shift
  for student in $(sparse_names) small; do
    printf '%s ' "$student" $(kd_names "$student")
  done
  [ "$streaming" = true ] || return 0
  printf '%s ' stream $(kd_names stream)
  for shift in $kd_shift; do
    for student in $(kd_names stream); do printf '%s ' "${student}_shift$((10#$shift))"; done
  done
}
sparse_names() { # sparse60, sparse60_16x1; N:M has one sparsity of its own: sparse50_2of4
  local structure sparsity
  for structure in $structures; do
    case $structure in
      *:*) awk -v n="${structure%:*}" -v m="${structure#*:}" 'BEGIN { printf "sparse%.0f_%dof%d\n", 100 * (1 - n / m), n, m }' ;;
      *)
        for sparsity in $sparsities; do
          awk -v s="$sparsity" -v suffix="_$structure" 'BEGIN { printf "sparse%g%s\n", 100 * s, suffix == "_unstructured" ? "" : suffix }'
        done ;;
    esac
  done
}
kd_names() { # kd_names STUDENT
  [ "$kd_ranges" = student ] || echo "$1_kd"
  case $kd_ranges in student|both) echo "$1_kd_online" ;; esac
}
role_of() { case $1 in teacher) echo teacher ;; sparse*) echo sparse_student ;; stream*) echo streaming_student ;; *) echo small_student ;; esac; }
twin_of() { echo "${1%%_kd*}"; } # the same system without distillation
system_options() { # system_options NAME: what bin.train must know of a student -> array system_options
  local name=$1 role twin sparsity structure=unstructured
  role=$(role_of "$name") twin=$(twin_of "$name")
  system_options=(--role "$role" --name "$name" --exp-dir "$(system_dir "$name")")
  case $role,$name in sparse_student,*|streaming_student,*|*_kd_online) system_options+=(--teacher-dir "$teacher_dir") ;; esac
  if [ "$role" = sparse_student ]; then
    sparsity=${twin#sparse}
    case $sparsity in *_*) structure=${sparsity#*_}; structure=${structure/of/:} ;; esac
    case $structure in
      *:*) sparsity=$(awk -v n="${structure%:*}" -v m="${structure#*:}" 'BEGIN { printf "%.9g", 1 - n / m }') ;;
      *) sparsity=$(awk -v s="${sparsity%%_*}" 'BEGIN { printf "%g", s / 100 }') ;;
    esac
    system_options+=(--sparsity "$sparsity" --structure "$structure")
  fi
  case $name in
    *_kd_online*) system_options+=(--kd --kd-ranges student) ;;
    *_kd*) system_options+=(--kd --kd-ranges teacher --kd-cache "$kd_cache") ;;
    *) return ;;
  esac
  system_options+=(${kd_variant:+--kd-variant "$kd_variant"} ${kd_weighting:+--kd-weighting "$kd_weighting"}
    ${kd_scale:+--kd-scale "$kd_scale"})
  case $name in *_shift*) system_options+=(--kd-shift "${name##*_shift}") ;; esac
}
pictured_systems() { # the distilled ones that hear a whole utterance
  local name; for name in $(student_names); do case $name in stream*) ;; *_kd*) echo "$name" ;; esac; done | xargs
}
system_dir() { case $1 in teacher) echo "$teacher_dir" ;; *) echo "$exp_dir/students/$1" ;; esac; }
decode_dir() { echo "$(system_dir "$1")/decode_$2_$decoding_search"; }

#--- jobs side by side -----------------------------------------------------------------------------
job_names=() job_commands=()
add_job() { local name=$1; shift; job_names+=("$name"); job_commands+=("$(printf '%q ' "$@")"); }

run_jobs() { # runs what add_job collected, $nj at once; one job alone keeps the terminal to itself
  local i
  if [ "$dry_run" = true ]; then
    for i in "${!job_names[@]}"; do echo "+ ${job_commands[i]}"; done
  elif [ "$nj" = 1 ]; then
    for i in "${!job_names[@]}"; do bash -c "${job_commands[i]}" || exit $?; done
  else
    # xargs, and not background jobs: those would ignore Ctrl-C.  It takes sed along, so nobody else can say it.
    trap 'echo "interrupted; run the same command again to go on from here" >&2; exit 130' INT
    for i in "${!job_names[@]}"; do printf '%s\0%s\0' "${job_names[i]}" "${job_commands[i]}"; done |
      xargs -0 -n 2 -P "$nj" bash -c 'set -o pipefail; eval "$1" 2>&1 | sed -u "s/^/[$0] /"; status=$?; [ $status = 0 ] || exit 255' \
      || die "a job failed: see the lines above that begin with its [name]; mend it and run the same command again"
    trap - INT
  fi
  job_names=() job_commands=()
}

lock_folder() { # one run at a time in a folder; the lock goes when the last process of the run ends
  mkdir -p "$1" || die "$1: cannot be made; expected a folder that can be written; choose another --exp-dir"
  command -v flock >/dev/null 2>&1 || return 0
  exec 9>>"$1/.lock" || die "$1: cannot be written; choose another --exp-dir"
  flock -n 9 || die "$1: another run is at work there; wait for it to end, or choose another --exp-dir"
}

list_results() {
  [ "$dry_run" = false ] || return 0
  echo
  echo "Made:"
  local path
  for path in "$data_dir" "$exp_dir/cuts" "$exp_dir/bpe" "$teacher_dir" "$kd_cache" "$exp_dir/students" "$exp_dir/summary.md" "$exp_dir/summary.json" \
    "$exp_dir/export" "$exp_dir/sizes.md" "$exp_dir/sizes.json" "$exp_dir/report/index.html" "$exp_dir/experiments/${experiment:-.}"/{summary.md,summary.json,results.json}; do
    [ ! -e "$path" ] || echo "  $path"
  done
}
