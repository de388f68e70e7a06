# Every target does all of its own set-up; a second run reuses what the first installed.
#   make demo ARGS="--json out.json"    options are passed on
.DEFAULT_GOAL := help
.PHONY: help install demo up test test-infra soak lint format lock clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What the tests of infra/ need besides, each in an environment of its own.
TOOLS := $(VENV)/tools
ARGS ?=

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Install perennial into .venv: the command is .venv/bin/perennial
	@echo "$(BIN)/perennial is installed; to have it on the path: . $(BIN)/activate"

demo: $(STAMP) ## Watch a model being kept fresh on real flights (ARGS="--help" lists the options)
	@$(BIN)/perennial demo $(ARGS)

up: $(STAMP) ## Start the local stack and keep it running until Ctrl-C (ARGS="--help" lists the options)
	@$(BIN)/perennial up $(ARGS)

test: $(STAMP) ## Run the tests (ARGS="-k name" and other pytest options)
	@$(BIN)/python -m pytest $(ARGS)

test-infra: $(STAMP) $(TOOLS)/kubernetes/.installed $(TOOLS)/ministack/.installed $(TOOLS)/checkov/.installed $(TOOLS)/manifests/.installed ## Apply infra/terraform to emulators of AWS, look, destroy (eight minutes; needs Terraform)
	@PERENNIAL_INFRA=required $(BIN)/python -m pytest tests/infra -m infra $(ARGS)

soak: $(STAMP) ## Kill the ingest 200 times instead of the tests' 50 (PERENNIAL_KILLS=1000 for more)
	@PERENNIAL_KILLS=$${PERENNIAL_KILLS:-200} $(BIN)/python -m pytest tests/faults/test_killed_ingest.py -k again_and_again -s $(ARGS)

lint: $(STAMP) ## Check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP) ## Put the code into its format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# The stamp is written last, so an interrupted installation is done anew, and taken away first, so a broken update is too.
$(STAMP): requirements.lock pyproject.toml
	@set -e; found=; \
	if [ -e $(STAMP) ]; then \
	  rm -f $(STAMP); \
	else \
	  for python in python3.13 python3.12 python3.11 python3; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  [ -n "$$found" ] || { echo "perennial needs Python 3.11 or newer, and none of python3.13, python3.12, python3.11 and" \
	    "python3 is one: install it, then run make again." >&2; exit 2; }; \
	  $$found -c 'import ensurepip, venv' 2>/dev/null || { echo "$$found cannot make virtual environments: install its" \
	    "venv module (Debian: apt-get install python3-venv), then run make again." >&2; exit 2; }; \
	  $$found -m venv --clear $(VENV); \
	fi; \
	echo "Installing what requirements.lock names into $(VENV): some minutes, this once."; \
	$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.lock; \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -e .; \
	touch $(STAMP)

$(TOOLS)/%/.installed: tests/infra/%.lock $(STAMP)
	@echo "Installing what $< names into $(@D)."
	@$(BIN)/python -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install -qq --disable-pip-version-check -r $<
	@touch $@

# Beside the packages of $(VENV), and not among them: Prefect would import them in every process.
$(TOOLS)/kubernetes/.installed: infra/docker/kubernetes.lock $(STAMP)
	@echo "Installing what $< names into $(@D)."
	@rm -rf $(@D)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --target $(@D) -r $<
	@touch $@

# torch's CUDA packages stay out of the lock: pip takes them with torch where its wheel asks for them, and a CPU wheel does not.
lock: ## Resolve pyproject.toml anew into requirements.lock
	@set -e; \
	tools=$$(mktemp -d); trap 'rm -rf "$$tools"' EXIT; \
	python3 -m venv "$$tools/venv"; \
	"$$tools/venv/bin/python" -m pip install -qq --disable-pip-version-check uv; \
	"$$tools/venv/bin/uv" pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --extra dev --extra kubernetes \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links -o "$$tools/all"; \
	"$$tools/venv/bin/uv" pip compile pyproject.toml --quiet --universal --python-version 3.11 --extra dev --constraint "$$tools/all" \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links -o "$$tools/resolved"; \
	{ echo "# Made by 'make lock': what the extra kubernetes needs beyond requirements.lock; installed by pip with --no-deps."; \
	  grep -Fvxf "$$tools/resolved" "$$tools/all"; } > infra/docker/kubernetes.lock; \
	{ echo "# Made by 'make lock' from pyproject.toml, for Python 3.11 and newer on Linux and macOS; installed by pip."; \
	  echo "# The packages named nvidia-*, cuda-* and triton are left out: pip takes them where torch's wheel asks for them,"; \
	  echo "# and no gigabytes of them where it offers a CPU wheel."; \
	  grep -Ev '^(nvidia-|cuda-|triton)' "$$tools/resolved"; } > requirements.lock; \
	for tool in ministack checkov manifests; do \
	  "$$tools/venv/bin/uv" pip compile tests/infra/$$tool.in --quiet --upgrade --universal --python-version 3.11 \
	    --no-header --no-annotate --no-emit-index-url --no-emit-find-links -o "$$tools/resolved-$$tool"; \
	  { echo "# Made by 'make lock' from $$tool.in; in an environment of its own, since it wants other versions than perennial does."; \
	    cat "$$tools/resolved-$$tool"; } > tests/infra/$$tool.lock; \
	done
	@echo "infra/docker/service.lock comes of it: install it (make test), then run $(BIN)/python infra/docker/service_lock.py"

clean: ## Remove the virtual environment, caches and local state of this checkout
	rm -rf $(VENV) .perennial .mypy_cache .ruff_cache .pytest_cache .hypothesis perennial.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
