# Sourced by the other scripts: a virtual environment of our own in .venv, made once, and renewed when settings.ini changes.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 2; }
stamp=$("$PYTHON" -c 'import hashlib, sys
print(hashlib.sha256(sys.version.encode() + b"".join(open(name, "rb").read() for name in sys.argv[1:])).hexdigest())
' settings.ini setup.py pyproject.toml)
if [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ]; then
    echo "installing into .venv (a few minutes, several GB with PyTorch)" >&2
    "$PYTHON" -m venv .venv || exit
    [ "$(.venv/bin/python --version)" = "$("$PYTHON" --version)" ] || { echo ".venv is of another Python; remove it" >&2; exit 2; }
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' >&2 || exit
    echo "$stamp" > .venv/stamp
fi
export PATH="$PWD/.venv/bin:$PATH"
