#!/bin/sh
# run_pytest.sh VENV [pytest arguments]: runs the Python tests of the server in a virtual environment of their
# own, made on first use. Without Python, venv or the packages the test fails: it is never skipped.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=$1
shift
if ! [ -f "$venv/ready" ] || ! cmp -s "$here/requirements.txt" "$venv/ready"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/ready"
fi
PYTHONDONTWRITEBYTECODE=1 exec "$venv/bin/python" -m pytest -p no:cacheprovider -q "$@"
