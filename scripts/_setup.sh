# shellcheck shell=bash disable=SC2034  # some names are for the scripts that source this
# Sourced by the scripts beside it: finds a Python, keeps .venv in step with pyproject.toml.
#
#   setup "EXTRA..."   afterwards "$python" runs in .venv with tpuinfer and these extras installed
#
# A set-up that was interrupted leaves a mark in .venv and is made again from nothing. One that is
# complete leaves a stamp: a checksum of what it was made from, then the extras, and a second run
# does no more than compare it. A .venv made by hand is kept and installed into.

root="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)"
venv="$root/.venv"
python="$venv/bin/python"
stamp="$venv/tpuinfer.stamp"
unfinished="$venv/tpuinfer.unfinished"

say() { printf '%s\n' "$*" >&2; }

die() {
  say "$*"
  exit 1
}

# The pins were made on 3.11, so that comes first.
find_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3.14 python3 python; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  return 1
}

find_uv() { command -v uv || { [ -x ~/.local/bin/uv ] && echo ~/.local/bin/uv; }; }

make_venv() {
  local base uv
  if base="$(find_python)"; then
    "$base" -m venv "$venv" >"$venv/venv.log" 2>&1 && return
    say "$base -m venv fails: $(tail -n 1 "$venv/venv.log")"
  fi
  if uv="$(find_uv)"; then
    "$uv" venv --quiet --allow-existing --seed --python 3.12 "$venv" && return
  fi
  rm -rf "$venv"
  die "tpuinfer needs Python 3.11 or newer with its venv module, and $(python3 --version 2>&1 ||
    echo 'no python3') is what is here. Either 'apt install python3.11 python3.11-venv' (or what
your system calls them), or 'python3 -m pip install --user uv', and run this again."
}

# pip, or uv in an environment that has no pip and no way to get it.
install() {
  local uv
  if "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null 2>&1; then
    "$python" -m pip install --quiet --disable-pip-version-check "$@"
  elif uv="$(find_uv)"; then
    "$uv" pip install --quiet --python "$python" "$@"
  else
    say ".venv has neither pip nor ensurepip, and uv is not here: remove .venv and run this again."
    return 1
  fi
}

# The pins hold on the versions of Python they were resolved on.
constraints() {
  if "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
    echo --constraint "scripts/constraints.txt"
  else
    say "Not Python 3.11 to 3.13: installing without the pins of scripts/constraints.txt."
  fi
}

checksum() {
  { pwd -P && cat pyproject.toml scripts/constraints.txt .venv/pyvenv.cfg; } 2>/dev/null | cksum
}

one_a_line() { tr ', ' '[\n*]' | sed '/^$/d' | sort -u; }

recorded_extras() { [ ! -f "$stamp" ] || sed -n 2p "$stamp"; }

# True when .venv is whole, made from these files, and has all the extras named.
up_to_date() {
  [ -x "$python" ] && [ -f "$stamp" ] && [ ! -e "$unfinished" ] &&
    [ "$(sed -n 1p "$stamp")" = "$(checksum)" ] &&
    [ -z "$(comm -23 <(one_a_line <<<"$1") <(recorded_extras | one_a_line))" ]
}

known_extras() {
  sed -n '/^\[project.optional-dependencies\]/,/^\[tool/s/^\([a-z0-9-]*\) *=.*/\1/p' pyproject.toml
}

check_extras() {
  local extra
  for extra in $(one_a_line <<<"$1"); do
    known_extras | grep -qx -- "$extra" ||
      die "--with names '$extra', which is not an extra: use $(known_extras | paste -sd ' ' -)."
  done
}

# True on a TPU VM: a PCI device of Google's that is neither a network card nor a disk.
has_tpu() {
  local device vendor class
  for device in "${1:-/sys/bus/pci/devices}"/*; do
    { read -r vendor <"$device/vendor" && read -r class <"$device/class"; } 2>/dev/null || continue
    case "$vendor $class" in
      "0x1ae0 0x01"* | "0x1ae0 0x02"*) ;;
      "0x1ae0 "*) return 0 ;;
    esac
  done
  return 1
}

accelerator_extra() {
  if has_tpu; then
    echo tpu
  elif nvidia-smi -L 2>/dev/null | grep -q GPU; then
    echo cuda
  fi
}

prepare_venv() {
  if [ -e "$unfinished" ]; then
    say "An earlier set-up was interrupted: making .venv again."
    rm -rf "$venv"
  elif [ -d "$venv" ] && ! "$python" -c '' 2>/dev/null; then
    say "The Python of .venv does not run: making .venv again."
    rm -rf "$venv"
  fi
  if [ ! -d "$venv" ]; then
    mkdir "$venv"
    touch "$unfinished"
    make_venv
  fi
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die ".venv has $("$python" --version), tpuinfer needs 3.11 or newer: remove .venv, run again."
}

install_extras() {
  local wanted status=0
  prepare_venv
  wanted="$({ recorded_extras && echo "$1"; } | one_a_line | paste -sd , -)"
  say "Installing tpuinfer${wanted:+[$wanted]} into .venv (a minute or two the first time)."
  rm -f "$stamp"
  touch "$unfinished"
  # shellcheck disable=SC2046  # no words, or two
  install $(constraints) --editable ".${wanted:+[$wanted]}" || status=$?
  [ "$status" -le 128 ] && rm -f "$unfinished" # a kill is an interruption, a refusal is not
  [ "$status" -eq 0 ] || die "The installation failed; what it said stands above."
  printf '%s\n%s\n' "$(checksum)" "$wanted" >"$stamp"
}

# Runs in a subshell: the working directory, the trap and the lock end with it.
setup() (
  cd "$root" || exit
  check_extras "$1"
  up_to_date "$1" && return
  trap 'exit 130' INT
  if command -v flock >/dev/null; then
    exec 9<pyproject.toml
    flock --nonblock 9 || { say "Waiting for another set-up to end." && flock 9; }
    up_to_date "$1" && return
  fi
  install_extras "$1"
)

# Reads --with EXTRA[,EXTRA] at the front of the arguments: `extras` is what it names, unset
# without one, and `taken` is how many arguments to shift away.
take_with() {
  unset extras
  taken=0
  case "${1-}" in
    --with)
      [ $# -ge 2 ] || die "--with needs the name of an extra."
      extras="$2"
      taken=2
      ;;
    --with=*)
      extras="${1#--with=}"
      taken=1
      ;;
  esac
}
