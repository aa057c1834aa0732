# The two commands of a newcomer are `make demo` and `make test`; both create .venv and build the extension first.
PYTHON ?= python3
# Any torch >= 2.11 will do. A CPU build is enough and spares gigabytes, e.g. TORCH='torch==2.13.0+cpu'.
TORCH  ?= torch==2.13.0
VENV   := .venv
SOURCES := $(shell find csrc -type f)
# Where `make gpu-first` and `make gpu-check` write what they find.
RESULTS ?= runs/$@
# An environment with torch 2.11.0+cu130 and its toolkit for `make gpu-library`; unset: it makes .venv-cuda.
CUDA_VENV ?=
# Interpreters with a torch each, for which `make wheels` puts a library into the wheel.
WHEEL_PYTHONS ?= $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test torture models adapterhub peft emulate cuda-check gpu-library gpu-first gpu-check cmake-check wheels cpp-example docs site lint format bench bench-table clean distributed large

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q '$(TORCH)' scikit-build-core cmake ninja
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml CMakeLists.txt $(wildcard cmake/*) cuda_toolkit.py version.txt $(SOURCES)
	$(VENV)/bin/pip install -q --no-build-isolation -e '.[train,onnx,test,lint,docs,distribution]'
	@$(VENV)/bin/python -c 'import adapterx.ops; print("installed, kernels:", adapterx.ops.build_info())'
	touch $@

install: $(VENV)/.installed  ## create .venv, install, build the extension

demo: install  ## train on real data, compare, export, verify (about ten minutes)
	$(VENV)/bin/python examples/demo.py --output runs/demo

test: install  ## run the whole test suite, the files in two processes (a test uses one thread)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

torture: install  ## the long campaigns: kills, full disks, damaged and contested folders (about half an hour)
	$(VENV)/bin/python -m pytest tests/torture -o python_files='torture_*.py'

distributed: install  ## two processes through torchrun and accelerate, beside one (some minutes)
	$(VENV)/bin/python -m pytest tests/distributed -o python_files='test_*.py distributed_*.py'

large: install  ## compiled training for every kind of adapter, quantised and offloaded bases (some minutes)
	$(VENV)/bin/python -m pytest tests/large tests/attach/test_quantised_bases.py tests/attach/test_offloaded_bases.py -o python_files='test_*.py large_*.py'

adapterhub: install  ## beside AdapterHub's adapters, in .venv-adapterhub: its outputs again, ours against them, our files loaded by it
	$(PYTHON) -m venv .venv-adapterhub
	.venv-adapterhub/bin/pip install -q '$(TORCH)' adapters==1.3.0 safetensors numpy
	HF_HUB_OFFLINE=1 .venv-adapterhub/bin/python tests/adapterhub/make_goldens.py compare tests/adapterhub/goldens
	HF_HUB_OFFLINE=1 $(VENV)/bin/python tests/adapterhub/check.py write build/adapterhub
	HF_HUB_OFFLINE=1 .venv-adapterhub/bin/python tests/adapterhub/make_goldens.py load build/adapterhub
	$(VENV)/bin/python tests/adapterhub/check.py verify build/adapterhub

peft: install  ## the plugin with each pair of versions of peft and transformers, in .venv-peft (about a quarter of an hour)
	$(PYTHON) -m venv .venv-peft
	.venv-peft/bin/pip install -q '$(TORCH)'
	PYTHONPATH=$(CURDIR) HF_HUB_OFFLINE=1 .venv-peft/bin/python tests/peft_versions/matrix.py

models: install  ## attach adapters to a tiny model of every type of transformers and judge where they hang: docs/models.md (about half an hour)
	$(VENV)/bin/python tests/models/census.py --work runs/models
	$(VENV)/bin/python tests/models/page.py --work runs/models

emulate: install  ## run the CUDA device code on the host, and see every planted bug caught (about twenty minutes)
	$(VENV)/bin/python -m pytest tests/kernels/test_emulator*.py
	$(VENV)/bin/python tests/emulator/mutants.py --sanitize
	$(VENV)/bin/python tests/emulator/mutants.py --jobs 2

cuda-check: install  ## without a GPU: build the CUDA extension in .venv-cuda, load it, check every kernel; the kernels without torch
	$(PYTHON) tests/cuda/check_extension.py

gpu-library:  ## without a GPU: build the library for an H100, to be carried to one (ADAPTERX_LIBRARY names it there)
	$(PYTHON) tests/cuda/gpu_library.py $(if $(CUDA_VENV),--venv $(CUDA_VENV))

gpu-first:  ## on a machine with a GPU: every path against float64, its times, its counters, within 200 seconds
	$(PYTHON) tests/cuda/gpu_first.py --results $(RESULTS)

gpu-check:  ## on a machine with a GPU: all tests, all benchmarks, sanitizers, within 500 seconds
	$(PYTHON) tests/cuda/gpu_check.py --results $(RESULTS)

cmake-check: install  ## build the same library with CMake, install it, find it from another project and call it
	$(VENV)/bin/cmake -S . -B build/cmake -GNinja -DPython_EXECUTABLE=$(CURDIR)/$(VENV)/bin/python
	$(VENV)/bin/cmake --build build/cmake
	$(VENV)/bin/cmake --install build/cmake --prefix build/cmake/installed
	$(VENV)/bin/cmake -S tests/cmake_consumer -B build/cmake_consumer -GNinja \
	  -DCMAKE_PREFIX_PATH="$(CURDIR)/build/cmake/installed;$$($(VENV)/bin/python -c 'import torch; print(torch.utils.cmake_prefix_path)')"
	$(VENV)/bin/cmake --build build/cmake_consumer
	build/cmake_consumer/consumer

wheels: install  ## the source distribution and the wheel in dist/, built, audited, installed and used under every torch of WHEEL_PYTHONS
	$(VENV)/bin/python distribution/make_wheels.py $(foreach python,$(WHEEL_PYTHONS),--python $(python))

cpp-example: install  ## build the C++ program of export/cpp_loader, run it on an exported model, compare with PyTorch
	$(VENV)/bin/python -m pytest tests/export/test_cpp_loader.py

docs: install  ## write anew what docs/ takes from the code: API pages, floors, types of the operators
	$(VENV)/bin/python docs/generate

site: install  ## build the documentation as a site in build/site; a warning is an error
	$(VENV)/bin/mkdocs build --quiet

lint: install  ## ruff and clang-format, changing nothing
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	git ls-files -z '*.cpp' '*.h' '*.cu' '*.cuh' | xargs -0 $(VENV)/bin/clang-format --dry-run --Werror

format: install  ## let ruff and clang-format rewrite the files
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	git ls-files -z '*.cpp' '*.h' '*.cu' '*.cuh' | xargs -0 $(VENV)/bin/clang-format -i

bench: install  ## measure the operator and append the rows to benchmarks/results/
	$(VENV)/bin/python benchmarks/bench_op.py

bench-table: install  ## write the tables of README and docs/cuda.md anew from what was measured and counted
	$(VENV)/bin/python benchmarks/tables.py

clean:  ## remove what was built (keeps .venv and runs/)
	rm -rf build dist adapterx/libadapterx*.so
