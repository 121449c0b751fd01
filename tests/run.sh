#!/usr/bin/env bash
# Set-up and tests: bash tests/run.sh [pytest arguments]. Without arguments the style is checked, too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup_venv.sh test
python=${VENV:-.venv}/bin/python
if [[ $# -eq 0 ]]; then
  "$python" -m ruff check .
  "$python" -m ruff format --check .
fi
exec "$python" -m pytest "$@"
