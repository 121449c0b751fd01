#!/usr/bin/env bash
# Makes or reuses .venv and installs what is missing: bash launch/setup_venv.sh [test]
#
#   PYTHON   the Python to make it with, 3.11 or 3.12 (else the first such one of python3, python3.12, python3.11)
#   VENV     where it is (.venv)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra=${1:-}
venv=${VENV:-.venv}

fail() {
  echo "error: $*" >&2
  exit 1
}

supported() { # supported PYTHON: is there such a Python, and is it 3.11 or 3.12?
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.12 python3.11}; do
    if supported "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "Python 3.11 or 3.12 is needed (tried: ${PYTHON:-python3, python3.12, python3.11}):" \
    "install one, or say PYTHON=/path/to/python3.12"
}

# What was installed is remembered as a checksum of the files that say what to install. With `test` there is more in it.
wanted=$(cat requirements.txt pyproject.toml | cksum)
for installed in "$venv/installed$extra" "$venv/installedtest"; do
  if [[ -f $installed && $(<"$installed") == "$wanted" ]]; then
    echo "set-up: $venv is up to date"
    exit 0
  fi
done

fresh=
if [[ ! -x $venv/bin/python ]] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  python=$(find_python)
  echo "set-up: making $venv with $("$python" --version)"
  "$python" -m venv "$venv" || fail "$python cannot make a virtual environment (on Debian: apt install python3-venv)"
  fresh=1
fi
supported "$venv/bin/python" || fail "$venv has $("$venv/bin/python" --version), 3.11 or 3.12 is needed: delete $venv"

install_all() {
  "$venv/bin/python" -m pip install --disable-pip-version-check --editable ".${extra:+[$extra]}" ||
    fail "pip could not install everything: see above, then start again (what is there is kept)"
}

echo "set-up: installing requirements.txt${extra:+ and the extra \"$extra\"} into $venv (a fresh one: some minutes, 3 GB)"
if [[ $fresh ]]; then
  install_all # On a terminal, with bars that move: no pipe, which would stop them.
else
  install_all | sed '/^Requirement already satisfied/d' # A hundred lines.
fi
echo "$wanted" >"$venv/installed$extra"
