# Sourced by run.sh: options in the convention of Kaldi, ESPnet and icefall.
#
#   --name value   --name=value   --flag true|false (--flag alone means true)   --config FILE
#
# An option is a variable that is set before parse_options: --stop-stage is stop_stage.  One whose value is true or
# false is a flag; an array takes an option that may be repeated.  A --config FILE holds a line for each option,
# "name=value", "name: value" or "--name value", # begins a comment; the command line goes first.  Nothing in it is run.
# $usage is what --help prints; its lines that begin with "  --name" say which options there are.  $given: those that
# were given, on the command line or in a file, whatever their values.
given=

die() { echo "error: ${*//[[:cntrl:]]/ }" >&2; exit 1; }

# An empty or negative CUDA_VISIBLE_DEVICES hides every GPU.
has_gpu() { [[ ${CUDA_VISIBLE_DEVICES-0} =~ ^(GPU|MIG|[0-9]) ]] && nvidia-smi -L 2>/dev/null | grep -q GPU; }

option_names() { echo $(grep -oE '^  --[a-z-]+' <<<"$usage"); }

parse_options() { # parse_options "$@"
  local words=() i
  for ((i = 1; i <= $#; i++)); do
    case ${!i} in
      --config=*) read_option_file "${!i#*=}" ;;
      --config) [ "$i" -lt $# ] || die "--config needs a value"; i=$((i + 1)); read_option_file "${!i}" ;;
      *) words+=("${!i}") ;;
    esac
  done
  [[ " ${words[*]-} " != *" --test-dirs"[\ =]* ]] || test_dirs=()
  read_options ${words[@]+"${words[@]}"}
}

read_options() {
  local name value
  while [ $# -gt 0 ]; do
    case $1 in --help | -h) echo "$usage"; exit 0 ;; esac
    name=${1%%=*}
    [[ " $(option_names) " == *" $name "* ]] || die "unknown option '$1'; expected one of: $(option_names) --help"
    if [[ $1 == *=* ]]; then
      value=${1#*=}; shift
    elif [[ $(current "$name") =~ ^(true|false)$ ]] && [[ $# = 1 || $2 == --* ]]; then
      value=true; shift
    else
      [ $# -ge 2 ] || die "$1 needs a value"
      value=$2; shift 2
    fi
    assign "$name" "$value"
  done
}

variable() { local name=${1#--}; echo "${name//-/_}"; }
current() { local name; name=$(variable "$1"); echo "${!name-}"; }

assign() { # assign --NAME VALUE
  local name; name=$(variable "$1") given+=" $1"
  case $(declare -p "$name") in
    "declare -a"*) eval "$name+=(\"\$2\")" ;;
    *)
      [[ ! ${!name} =~ ^(true|false)$ || $2 =~ ^(true|false)$ ]] || die "$1: '$2'; expected one of: true, false"
      printf -v "$name" '%s' "$2" ;;
  esac
}

read_option_file() {
  local line name value
  [ -r "$1" ] && [ ! -d "$1" ] || die "--config: '$1'; expected a file with lines name=value"
  while IFS= read -r line || [ -n "$line" ]; do
    line=${line#$'\xef\xbb\xbf'} line=${line%"${line##*[![:space:]]}"} line=${line#"${line%%[![:space:]]*}"}
    [[ -n $line && $line != \#* ]] || continue
    [[ $line =~ ^(--)?([a-zA-Z_-]+)[[:space:]]*([=:]|[[:space:]])[[:space:]]*(.*)$ ]] || die "$1: '$line'; expected name=value"
    name=--${BASH_REMATCH[2]//_/-} value=${BASH_REMATCH[4]}
    [ "$name" != --config ] || die "$1: '$line'; expected no --config in such a file; write its lines here"
    if [[ $value =~ ^\"([^\"]*)\"[[:space:]]*(#.*)?$ || $value =~ ^\'([^\']*)\'[[:space:]]*(#.*)?$ ]]; then
      value=${BASH_REMATCH[1]}
    else
      value=${value%%#*} value=${value%"${value##*[![:space:]]}"}
      [[ $value != [\"\']* ]] || die "$1: '$line'; expected the quotes around the whole value"
    fi
    read_options "$name=$value"
  done <"$1"
}

one_of() { # one_of OPTION VALUE CHOICES
  [[ -n $2 && " $3 " == *" $2 "* ]] || die "$1: '$2'; expected one of: ${3// /, }"
}

names_in() { # names_in FOLDER SUFFIX [BUT]: names on the command line are things on disk
  echo $(for path in "$1"/*"$2"; do [ ! -e "$path" ] || [ "${path##*/}" = "${3-}$2" ] || basename "$path" "$2"; done)
}
