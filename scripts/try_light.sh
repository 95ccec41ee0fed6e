#!/bin/sh
# Install a wheel with the server, but without torch, into an empty environment: predict in an image and in a folder,
# serve, and see what is said where torch is needed.
#
#   sh scripts/try_light.sh dist/epmvg-0.1.0-py3-none-any.whl [pip options, for example -c constraints.txt]
set -eu
package=$(realpath "$1")
examples=$(realpath "$(dirname "$0")/../examples")
shift
folder=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
${PYTHON:-python3} -m venv "$folder/venv"
bin="$folder/venv/bin"
"$bin/python" -m pip install --quiet --disable-pip-version-check "$@" "$package[serve]"
unset PYTHONPATH
cd "$folder"
! "$bin/python" -c "import torch" 2>/dev/null

"$bin/epmvg" predict default "$examples/photo.jpg" "the man" --top-k 3 --draw found.png
test -s found.png
"$bin/epmvg" predict default "$examples" "the man" "a camera" --out found.jsonl
test "$(wc -l < found.jsonl)" -ge 2

"$bin/epmvg" serve default --port 8765 2> server.log &
server=$!
for _ in $(seq 50); do grep -q "http://" server.log 2>/dev/null && break; sleep 0.2; done
EPMVG_SERVER=http://127.0.0.1:8765 "$bin/python" "$examples/serve_client.py" "$examples/photo.jpg" "the man"

if "$bin/epmvg" train few-photos 2> error.txt; then exit 1; fi
grep "pip install 'epmvg\[train\]'" error.txt
du -sm "$folder/venv/lib" | cut -f1 | xargs printf '%s MB installed, pip and the server included\n'
