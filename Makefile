# make demo | test | lint | format | clean. Each creates the environment first if there is none;
# make device-check uses python3 then.
#
# PYTHON=/path/to/python  another interpreter    VENV=dir  another place for the environment
# ARGS="..."              passed on, for instance: make demo ARGS="--tiny --runs runs/try"

VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: help demo test device-check lint format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    run experiments/demo.py: sweep, fits, RLHF and a report, about 6 minutes"
	@echo "             (ARGS=--tiny: the same in a few minutes); interrupted, it goes on"
	@echo "make test    run the tests"
	@echo "make device-check   kernels, precision, PPO's self-check and speed on the devices here"
	@echo "make lint    check style and types;  make format  rewrite to the style"
	@echo "make clean   remove the environment $(VENV); runs are kept"
	@echo "The environment is made with the best Python found, or with PYTHON=/path/to/python"
	@echo "(to change it: make clean first). It holds the command rlhf-jax:"
	@echo "    source $(BIN)/activate     then rlhf-jax ...;  or $(BIN)/rlhf-jax ..."

demo: $(READY)
	$(BIN)/rlhf-jax run experiments/demo.py $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

device-check:
	@python=$(BIN)/python; [ -x $$python ] || python=python3; \
	$$python -m rlhf_jax.tools.bench.device_check $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV)

# Interpreters in order of preference. 3.13 and 3.12 get the newest jax, which trains about twice as
# fast on a CPU as the last one for 3.11, and all compiled dependencies have wheels for them; for 3.14
# some are missing on some platforms. A name on PATH may be a shim that refuses to run, so each one is
# tried, and pyenv's own folders are searched too. Where the installation fails (a missing wheel) the
# next interpreter is tried. An existing environment is kept.
define CREATE
fits() {
  "$$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}
candidates() {
  if [ -n "$(PYTHON)" ]; then echo "$(PYTHON)"; return; fi
  pyenv_root=$$(pyenv root 2>/dev/null || echo "$$HOME/.pyenv")
  for version in 3.13 3.12 3.14 3.11; do
    echo "python$$version"
    ls -d "$$pyenv_root"/versions/$$version.*/bin/python 2>/dev/null | sort -rV || true
  done
  echo python3
}
install() {
  "$(BIN)/python" -m pip install --quiet --no-input --disable-pip-version-check -e ".[dev]"
}
ready() {
  touch "$(READY)"
  echo "Ready. The command rlhf-jax: source $(BIN)/activate, or call $(BIN)/rlhf-jax"
  exit 0
}
if fits "$(BIN)/python" && install; then ready; fi
for python in $$(candidates); do
  fits "$$python" || continue
  echo "Creating $(VENV) with $$("$$python" --version) ($$python) ..."
  if rm -rf "$(VENV)" && "$$python" -m venv "$(VENV)" && install; then ready; fi
  echo "The installation with $$python failed; trying the next one"
done
rm -rf "$(VENV)"
echo "No Python could be used: 3.11 or newer with venv and pip is needed (3.13 is best)." >&2
echo "Give one with: make PYTHON=/path/to/python ..." >&2
exit 1
endef
export CREATE

$(READY): pyproject.toml
	@sh -c "$$CREATE"
