# Deep Layer Cascade. `make help` lists the targets; settings are given as NAME=value.
#   PROFILE   data set, network and budget (default of reproduce and data: voc12 with a GPU of 24 GB, else shapes; of book and
#             notebook: the best that has committed records)
#   NB, RHO   chapter and threshold of `make notebook`; ARCHIVES: files you fetched, for `make data`
#   LC_DATA   folder that holds the data sets (default: data)
#   PYTHON    the Python that .venv is made from, 3.11.4 to 3.13 (default: python3)
SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
PYTHON ?= python3
LC_DATA ?= data
export LC_DATA
PY := .venv/bin/python
READY := .venv/.ready
LC := $(PY) -m lc
CODE := $(wildcard lc/*.py lc/*/*.py results/*.csv)
CHAPTERS := $(basename $(notdir $(wildcard book/*.ipynb)))
WITH_RHO := $(basename $(notdir $(shell grep -l '"rho: float' book/*.ipynb)))
# the newest committed real evidence, best first
EVIDENCE := $(firstword $(foreach p,voc12 cityscapes camvid camvid-lite,$(if $(wildcard results/$(p)/runs/*.json),$(p))))
# these targets work on one profile; the others may do without
B = build/$(PROFILE)

.PHONY: help setup data reproduce book notebook test clean python-fits runs pages FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

reproduce: python-fits ## everything: set-up, data, missing runs, book   [PROFILE=... LC_DATA=...]
	@$(PYTHON) -m lc plan $(if $(PROFILE),--profile $(PROFILE))
	@profile=$$($(PYTHON) -m lc plan $(if $(PROFILE),--profile $(PROFILE)) --only name) && \
	 $(MAKE) -s $(READY) && \
	 $(MAKE) -s runs PROFILE=$$profile && \
	 $(MAKE) -s -j 2 pages PROFILE=$$profile

book: $(READY) ## render the committed evidence, train nothing   [PROFILE=...]
	@$(MAKE) -s -j 2 pages PROFILE=$(or $(PROFILE),$(EVIDENCE))

notebook: $(READY) ## rerun one chapter, some with another threshold: NB=rho RHO=0.97   [PROFILE=...]
	@test -f "book/$(NB).ipynb" || { echo "make notebook needs NB=<name>, one of: $(CHAPTERS)"; exit 2; }
	@test -z "$(RHO)" || test -n "$(filter $(NB),$(WITH_RHO))" || { echo "$(NB) has no RHO; chapters that have: $(WITH_RHO)"; exit 2; }
	@$(if $(RHO),$(MAKE) -s data PROFILE=$(or $(PROFILE),$(EVIDENCE)))
	@$(LC) notebook $(NB) --set profile=$(or $(PROFILE),$(EVIDENCE)) $(if $(RHO),--set rho=$(RHO)) --html \
	  --out build/notebook/$(NB)-$(or $(PROFILE),$(EVIDENCE))$(if $(RHO),-$(RHO)).ipynb

test: $(READY) ## run the tests, two files at a time
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

setup: $(READY) ## make .venv from requirements.lock

data: $(READY) ## fetch and check the data of a profile: PROFILE=voc12   [LC_DATA=... ARCHIVES='FILE ...' you fetched]
	@name=$$($(LC) plan $(if $(PROFILE),--profile $(PROFILE)) --only dataset) && \
	 if [ -f data_scripts/$$name.py ]; then [ -d "$(LC_DATA)/$$name" ] || rm -f build/data/$$name.json; $(MAKE) -s build/data/$$name.json; \
	 else echo "data set $$name is made on the fly; nothing to fetch"; fi

clean: ## remove what can be made again (build/); keeps .venv, data, checkpoints and results
	rm -rf build

python-fits:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11, 4) <= sys.version_info[:3] < (3, 14))' || \
	 { echo "Python 3.11.4 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); set PYTHON=/path/to/python3.12"; exit 2; }

$(READY): requirements.lock pyproject.toml
	@$(MAKE) -s python-fits
	@echo "Setting up .venv from requirements.lock (about 6 GB, a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check uv==0.13.8
	@.venv/bin/uv pip install --quiet --python $(PY) --require-hashes -r requirements.lock
	@.venv/bin/uv pip install --quiet --python $(PY) --no-deps -e .
	@touch $@

build/data/%.json: data_scripts/%.py | $(READY)
	@$(PY) $< --data $(LC_DATA) --manifest $@ $(if $(ARCHIVES),--from-archive $(ARCHIVES))

runs: $(READY)
	@if [ "$$($(LC) plan --profile $(PROFILE) --only count)" != 0 ]; then $(MAKE) -s data; fi
	@$(LC) run --profile $(PROFILE)

pages: $(B)/html/index.html
	@echo "The book: $(CURDIR)/$(B)/html/index.html"

# changes with the records and timings, by what is in them: what notebooks depend on
$(B)/records.stamp: FORCE
	@mkdir -p $(B)
	@find results/$(PROFILE)/runs results/$(PROFILE)/bench results/bench -type f -exec sha256sum {} + 2>/dev/null | sort -k 2 > $@.now; \
	 if cmp -s $@.now $@; then rm $@.now; else mv $@.now $@; fi

build/$(PROFILE)/book/%.ipynb: book/%.ipynb $(CODE) build/$(PROFILE)/records.stamp
	@$(LC) notebook $* --set profile=$(PROFILE) --out $@

$(B)/html/index.html: $(CHAPTERS:%=$(B)/book/%.ipynb) $(wildcard book/*.yml book/*.md book/*.bib)
	@$(LC) stage --profile $(PROFILE)
	@.venv/bin/jupyter-book --version | grep -q ' 1\.' || .venv/bin/jupyter-book --version | grep -q '^Jupyter Book *: 1\.' || \
	 { echo "jupyter-book 1.x is needed: version 2 fetches its theme while it builds; run make setup"; exit 2; }
	@.venv/bin/jupyter-book build $(B)/book --path-output $(B) -W -n --keep-going --quiet
	@rm -rf $(B)/html && mv $(B)/_build/html $(B)/html
	@touch $@
