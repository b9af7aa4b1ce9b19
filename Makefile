# make sample                     generate a sample with models/demo, in a virtual environment that this creates
# make download MODEL=345M        download a released model; the default is 117M
# make interactive MODEL=117M     continue the prompts you type; FLAGS='--top_k 40' passes flags, also to make sample
# make serve MODEL=117M           serve a page to type into, and an API, at http://127.0.0.1:8000
# make activate                   print the file to source in a shell before running the scripts directly
# make check                      run the tests that take about a minute together
# make test PYTHON=python3.6      run all tests, here with TensorFlow 1.12.0; PYTEST_ARGS='-k encoder' selects some
# make lint                       check the style of the code with ruff
# make samples                    regenerate gpt-2-samples
# make pictures                   redraw the pictures of the documentation; needs chromium
# make bench                      compare the speed with other engines; BENCH_ARGS='--quick' is a short comparison
# make version                    print the version of this project, and which Python and TensorFlow make uses
# make clean                      remove the virtual environments
# PYTHON chooses TensorFlow; TENSORFLOW=tensorflow-gpu==1.12.0 overrides it. Each combination has its own environment.

PYTHON ?= python3
version := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

tensorflow_3.5 := tensorflow==1.12.0
tensorflow_3.6 := tensorflow==1.12.0
tensorflow_3.9 := tensorflow==2.20.0
tensorflow_3.10 := tensorflow==2.21.0
tensorflow_3.11 := tensorflow==2.21.0
tensorflow_3.12 := tensorflow==2.21.0
tensorflow_3.13 := tensorflow==2.21.0
# The pip of these Pythons does not know current wheels, and would compile for more than ten minutes instead.
pip_3.5 := pip==20.3.4
pip_3.6 := pip==21.3.1

TENSORFLOW ?= $(tensorflow_$(version))
no_tensorflow = $(PYTHON) $(if $(version),is Python $(version),does not run): \
	choose PYTHON=python3.5 or python3.6 (TensorFlow 1.12), PYTHON=python3.9 to python3.13 (TensorFlow 2), \
	or a package, for example TENSORFLOW=tensorflow==2.13.1

venv := .venv-$(version)-$(shell printf '%s' '$(TENSORFLOW)' | tr -cs 'A-Za-z0-9.' '-')
python := $(venv)/bin/python

.PHONY: help sample download interactive serve activate check test lint samples pictures bench version clean

help:
	@sed -n '/^#/!q; s/^# //p' Makefile

sample: $(venv)/installed
	$(python) src/generate_unconditional_samples.py --model_name $(or $(MODEL),demo) --nsamples 1 --top_k 40 $(FLAGS)

download: $(venv)/installed
	$(python) download_model.py $(or $(MODEL),117M)

interactive: $(venv)/installed
	@$(python) src/interactive_conditional_samples.py --model_name $(or $(MODEL),demo) $(FLAGS)

serve: $(venv)/installed
	@$(python) src/serve.py --model_name $(or $(MODEL),demo) $(FLAGS)

activate: $(venv)/installed
	@echo '$(abspath $(venv))/bin/activate'

pytest = $(python) -m pytest tests -rs -n auto --maxprocesses 8 --dist loadfile

check: $(venv)/installed-for-tests
	$(pytest) -m 'not slow' $(PYTEST_ARGS)

test: $(venv)/installed-for-tests
	$(pytest) $(PYTEST_ARGS)

# ruff needs a current Python.
lint: $(venv)/installed-for-tests
	$(python) -m ruff check src tests benchmarks docs download_model.py

bench: $(venv)/installed-for-bench
	$(python) benchmarks/benchmark.py $(BENCH_ARGS)

samples: $(venv)/installed
	PATH="$(abspath $(venv))/bin:$$PATH" gpt-2-samples/make.sh

pictures: $(venv)/installed-for-tests
	$(python) docs/pictures/make.py

version:
	@sed -n "s/^__version__ = '\(.*\)'.*/gpt-2 \1, Python $(version), $(TENSORFLOW)/p" src/gpt2/__init__.py

$(venv)/installed: requirements.txt
	$(if $(TENSORFLOW),,$(error $(no_tensorflow)))
	$(PYTHON) -m venv $(venv)
	$(if $(pip_$(version)),$(python) -m pip install --quiet '$(pip_$(version))')
	$(python) -m pip install --quiet -r requirements.txt '$(TENSORFLOW)'
	touch $@

$(venv)/installed-for-tests: $(venv)/installed tests/requirements.txt
	$(python) -m pip install --quiet -r requirements.txt -r tests/requirements.txt '$(TENSORFLOW)'
	touch $@

# One at a time: if an engine cannot be installed, as llama.cpp without a compiler, only that one is missing.
$(venv)/installed-for-bench: $(venv)/installed benchmarks/requirements.txt
	sed 's/ *#.*//; /^$$/d' benchmarks/requirements.txt | \
		while IFS= read -r line; do $(python) -m pip install --quiet "$$line" || true; done
	touch $@

clean:
	rm -rf .venv-*
