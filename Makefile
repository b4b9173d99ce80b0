# `make demo` and `make test` need nothing but Python >= 3.11: they create .venv here and install into it what they use.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo -n)

.PHONY: demo check test test-all results install clean

install: $(INSTALLED)

# uv only because it installs several GB in a fraction of pip's time.
$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("mde needs Python >= 3.11: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet uv
	$(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(PY) --editable '.[imagenet,nyu,tflite,tensorrt,sweeps,ray,dashboard,video,viewer,l515,dev]'
# The last librealsense that knows a live L515, beside the present one: for tests. Its wheels end at Python 3.11.
	-$(VENV)/bin/uv pip install --quiet --python $(PY) --target $(VENV)/librealsense-2.54 --no-deps 'pyrealsense2==2.54.2.*'
# What a Python 3.6, where there is one, runs the Jetson folder with: for tests.
	-$(PY) -m pip install --quiet --no-deps --only-binary=:all: --python-version 3.6 --target $(VENV)/numpy-1.19 'numpy==1.19.5'
	$(PY) -c 'import pyrealsense2' 2> /dev/null || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -qq -y libusb-1.0-0; } || \
	    echo "librealsense needs the system library libusb-1.0; install it (Debian: libusb-1.0-0), or leave data=l515 alone"
	touch $(INSTALLED)

demo: install
	rm -rf outputs/demo
	$(PY) train.py experiment=demo data.test=64 hydra.run.dir=outputs/demo/train
	$(PY) prune.py checkpoint=outputs/demo/train/model.safetensors prune=channel sparsity=0.5 trainer.max_steps=40 \
	    data.test=64 hydra.run.dir=outputs/demo/prune
	$(PY) deploy.py -m checkpoint=outputs/demo/prune/model.safetensors target=onnxruntime,openvino \
	    quantize=int8 data.test=64 hydra.sweep.dir=outputs/demo/deploy
	$(PY) deploy.py "compare=[outputs/demo/train/model.safetensors,outputs/demo/prune/model.safetensors,$$(echo \
	    outputs/demo/deploy/*target-onnxruntime*/model.onnx),$$(echo outputs/demo/deploy/*target-openvino*/model.xml)]" \
	    data.test=64 hydra.run.dir=outputs/demo

results: install
	$(PY) -m benchmarks.results

test: install
	$(PY) -m pytest -n 2 --dist worksteal

# While working: what needs no run.
check: install
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -n 2 tests/test_losses.py tests/test_metrics.py tests/test_geometry.py tests/test_config.py tests/test_json_file.py \
	    tests/test_names.py tests/test_overrides.py tests/test_runs.py tests/app/test_command_line.py tests/data tests/evaluation

# The suite, every document's commands as written, and the slowest variants: half an hour.
test-all: install
	$(PY) -m pytest -n 2 --dist worksteal -m ''

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
