# Targets are thin calls of `python -m srl <command>`, of a script or a tool: all works without make too.
# The variables below are set on make's command line only, never taken from the environment.

CONFIG = experiments/tiny/srl.yaml
RUN    =
RUN2   =
MODEL  =
DATA   =
BENCH  =
PROBLEM =
NAME   =
ARGS   =
# For set-up: which Python makes .venv, and which torch goes into it (`make clean` before a change).
PYTHON = python3
TORCH  = $(shell grep '^torch==' constraints.txt)

PY     = .venv/bin/python
PIP    = $(PY) -m pip --disable-pip-version-check --quiet
STAMP  = .venv/.installed
# A name as one word of the shell's, whatever signs are in it.
quoted = '$(subst ','\'',$(1))'
# Passed on only where the user named a config: a run knows its own.
NAMED_CONFIG = $(if $(findstring command,$(origin CONFIG)),--config $(CONFIG))

export HF_HUB_DISABLE_TELEMETRY = 1
# A text, which may hold a dollar sign: never expanded, neither here nor for a command's environment.
unexport PROBLEM
# So that a message can say what to type again.
export SRL_STARTED_BY = make

# A model and a file of one's own, in place of the config's.
OWN_DATA = --data '{source: files, path: "$(DATA)"}'
OWN = $(if $(MODEL),--model $(call quoted,$(MODEL))) $(if $(DATA),$(OWN_DATA))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo model experts train resume eval inspect report thoughts learnability check-data solve play compare compare-quick gap gap-quick experts-table real bench bench-gpu gpu base test lint types \
        clean need-name need-run need-run-or-model need-data

help: ## this list
	@echo 'usage: make TARGET [NAME=value ...]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo 'CONFIG=$(CONFIG) unless given; ARGS="--key value ..." overrides any field of it (compare, gap and real: change their file).'

setup: $(STAMP) ## .venv with pinned versions; every target needs it, done once

model: need-name $(STAMP) ## prepare a model to train, in models/: NAME=hub/name, NAME=file.gguf or NAME=folder
	$(PY) -m srl model $(call quoted,$(NAME)) $(ARGS)

experts: $(STAMP) ## sparse models: their cost, upcycling, exchange, pruning: ARGS="card --model NAME"
	@$(PY) -m srl experts $(ARGS)

train: $(STAMP) ## the main job [CONFIG=file.yaml] [RUN=name] [MODEL=name] [DATA=file] [ARGS="--key value ..."]
	$(PY) -m srl train --config $(CONFIG) $(if $(RUN),--run-name $(call quoted,$(RUN))) $(OWN) $(ARGS)

resume: need-run $(STAMP) ## continue an interrupted run: RUN=name
	$(PY) -m srl resume $(call quoted,$(RUN)) $(ARGS)

eval: need-run-or-model $(STAMP) ## evaluate a run's policy, RUN=name, or any model, MODEL=path [BENCH=gsm8k,math500]
	$(PY) -m srl eval $(if $(RUN),--run $(call quoted,$(RUN)),--model $(MODEL)) \
	  $(if $(BENCH),--bench $(BENCH),$(if $(RUN),$(NAMED_CONFIG),--config $(CONFIG))) $(ARGS)

inspect: need-run $(STAMP) ## the per-step reward log: RUN=name [ARGS="--reward lt:0.2 ..."]
	@$(PY) -m srl inspect $(call quoted,$(RUN)) $(ARGS)

report: need-run $(STAMP) ## one self-contained HTML file: RUN=name [RUN2=other, overlaid]
	$(PY) -m srl report $(call quoted,$(RUN)) $(if $(RUN2),$(call quoted,$(RUN2))) $(ARGS)

thoughts: $(STAMP) ## the policy explains the expert's steps; what helps is data for SFT [CONFIG=file.yaml] [RUN=name]
	$(PY) -m srl thoughts --config $(CONFIG) $(if $(RUN),--run-name $(call quoted,$(RUN))) $(OWN) $(ARGS)

learnability: $(STAMP) ## what a policy could learn from each source, before training [CONFIG=file.yaml] [RUN=name]
	$(PY) -m srl learnability --config $(CONFIG) $(if $(RUN),--run-name $(call quoted,$(RUN))) $(OWN) $(ARGS)

check-data: need-data $(STAMP) ## check a data set without a model: DATA=gsm8k, or DATA=file.jsonl
	$(PY) -m srl check-data $(DATA) $(ARGS)

solve: $(STAMP) ## a problem of yours, solved by a run's policy or a model: PROBLEM="..." [RUN=name] [MODEL=name]
	@$(PY) -m srl solve $(if $(RUN),--run $(call quoted,$(RUN)),--config $(CONFIG)) $(if $(MODEL),--model $(call quoted,$(MODEL))) \
	  $(if $(value PROBLEM),--problem $(call quoted,$(value PROBLEM))) $(ARGS)

demo: $(STAMP) ## the method on one step, without training: attempts, scores, advantages [CONFIG=file.yaml]
	@$(PY) -m srl demo --config $(CONFIG) $(OWN) $(ARGS)

play: $(STAMP) ## you are the policy: type a step, see every reward [CONFIG=file.yaml]
	@$(PY) -m srl play --config $(CONFIG) $(OWN) $(ARGS)

compare: $(STAMP) ## all rows of a comparison, and one table; goes on where it stopped [CONFIG=file.yaml]
	$(PY) -m srl compare $(or $(NAMED_CONFIG),--config experiments/compare/compare.yaml) $(ARGS)

compare-quick: $(STAMP) ## the same with one seed, fewer problems and steps
	$(PY) -m srl compare $(or $(NAMED_CONFIG),--config experiments/compare/compare.yaml) --quick $(ARGS)

gap: $(STAMP) ## which teacher, length or mixture suits which model, SFT and SRL; goes on where it stopped [CONFIG=file.yaml]
	$(PY) -m srl compare $(or $(NAMED_CONFIG),--config experiments/gap/gap.yaml) $(ARGS)

gap-quick: $(STAMP) ## the same with one seed, fewer problems and steps
	$(PY) -m srl compare $(or $(NAMED_CONFIG),--config experiments/gap/gap.yaml) --quick $(ARGS)

experts-table: $(STAMP) ## what sparse policies buy in small, and each way to balance them; goes on where it stopped
	test -d runs/sparse/copies || $(PY) -m srl experts upcycle --model experiments/tiny/base --output runs/sparse/copies
	test -d runs/sparse/half || $(PY) -m srl experts upcycle --model experiments/tiny/base --output runs/sparse/half --reinit 0.5
	test -d runs/sparse/fine || $(PY) -m srl experts upcycle --model experiments/tiny/base --output runs/sparse/fine --split 2
	test -d runs/sparse/small || $(PY) -m srl experts upcycle --model experiments/gap/middle --output runs/sparse/small --num-experts 4
	$(PY) -m srl compare --config experiments/compare/experts.yaml $(ARGS)

real: $(STAMP) ## a real 135 M model on GSM8K: fetched, SFT, SRL, one table; goes on where it stopped [DATA=file.jsonl]
	$(PY) -m srl model HuggingFaceTB/SmolLM2-135M-Instruct --output models/SmolLM2-135M-Instruct
	$(PY) -m srl compare --config experiments/real/smollm2.yaml --jobs 1 $(if $(DATA),--data $(call quoted,$(DATA))) $(ARGS)

bench: $(STAMP) ## speed beside the libraries people use, on this machine [ARGS="--rows 3 4"]
	$(PY) experiments/bench/bench.py $(ARGS)

bench-gpu: $(STAMP) ## the same on a GPU [ARGS="--toy": a dry run without one]
	$(PY) experiments/bench/gpu_rows.py $(ARGS)

gpu: $(STAMP) ## everything this project wants to know of a GPU, 8 minutes [ARGS="--toy"; experiments/gpu/README.md]
	$(PY) experiments/gpu/run.py $(ARGS)

base: $(STAMP) ## make the small base policy of the default config again
	$(PY) experiments/tiny/make_base.py $(ARGS)

test: $(STAMP) ## all tests, offline, a process a core and one more [ARGS="tests/test_x.py -k name -n 0"]
	$(PY) -m pytest $(ARGS)

lint: $(STAMP) ## ruff: style and likely mistakes
	$(PY) -m ruff check .

types: $(STAMP) ## mypy: the three packages
	$(PY) -m mypy

clean: ## remove .venv, caches and build output; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first: left to the resolver, the newest build with several GB of CUDA packages comes.
# Its own pin is then taken out of the constraints, so that TORCH=torch==2.11.0 stays what it is.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed; name one, as in: make setup PYTHON=python3.12' >&2; exit 2; }
	@echo 'Setting up .venv: $(TORCH) first, then the rest (some minutes, once)'
	@$(PYTHON) -m venv .venv
	@grep -v '^torch==' constraints.txt > .venv/constraints.txt
	@$(PIP) install -c .venv/constraints.txt '$(TORCH)'
	@$(PIP) install -c .venv/constraints.txt -e '.[dev]'
	@touch $@

need-name:
	@:$(if $(NAME),,$(error NAME is missing: a model, as in: make model NAME=Qwen/Qwen2.5-0.5B-Instruct, or: make model NAME=file.gguf))

need-run:
	@:$(if $(RUN),,$(error RUN is missing: name a folder of runs/, as in: make $(MAKECMDGOALS) RUN=name))

need-run-or-model:
	@:$(if $(RUN)$(MODEL),,$(error RUN or MODEL is missing, as in: make eval RUN=name, or: make eval MODEL=path))
	@:$(if $(RUN),$(if $(MODEL),$(error RUN and MODEL are both given: name one)))

need-data:
	@:$(if $(DATA),,$(error DATA is missing: a data set or a file, as in: make check-data DATA=gsm8k))
