"""A TensorRT engine that is run from NumPy arrays, with the tensor API (8.5 and later) or the bindings before it.

Python 3.6 syntax: the Jetson bundle ships this file.
"""

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

import numpy as np

if TYPE_CHECKING or __package__:
    from mde.jetson.builder import BuildError
    from mde.jetson.cudart import Cuda
else:
    from builder import BuildError
    from cudart import Cuda

DTYPES = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8"}


class Engine:
    """An engine of one input and one output, with its memory. Not for several threads.

    >>> engine = Engine(trt, load_cuda(), "model.engine")  # doctest: +SKIP
    >>> inverse_depth = engine(image)  # doctest: +SKIP
    """

    def __init__(self, trt: Any, cuda: Cuda, path: str, dla: Optional[int] = None) -> None:
        """trt: the module that built `path`; dla: the core that it was built for.

        BuildError when the library refuses the file, CudaError without memory or GPU. That the file is whole and fits
        this device is for `builder.misfit` to say, before.
        """
        self.trt, self.cuda = trt, cuda
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))  # the engine must not outlive it
        if dla is not None:
            self.runtime.DLA_core = dla
        with open(path, "rb") as file:
            self.engine = self.runtime.deserialize_cuda_engine(file.read())
        if self.engine is None:
            raise BuildError(f"{path}: {trt.__name__} {trt.__version__} refuses it; build it again on this device")
        self.context = self.engine.create_execution_context()
        self.tensor_api = hasattr(self.context, "set_tensor_address")
        tensors = self._tensors()
        if sorted(is_input for _, is_input, _ in tensors) != [False, True]:
            raise BuildError(f"{path}: not one input and one output; build it from the ONNX file of a depth network")
        self.stream = cuda.create_stream()
        self.addresses: List[int] = []
        for name, is_input, host in tensors:
            self.addresses.append(cuda.malloc(host.nbytes))
            if is_input:
                self.input, self.input_address = host, self.addresses[-1]
            else:
                self.output, self.output_address = host, self.addresses[-1]
            if self.tensor_api:
                self.context.set_tensor_address(name, self.addresses[-1])

    def __call__(self, image: Any) -> Any:
        """Input as the graph takes it, uint8 or float32 -> float32 (1, 1, H, W). ValueError for another shape."""
        if image.shape != self.input.shape:
            raise ValueError(f"image {image.shape}: the engine takes {self.input.shape}")
        self.upload(image)
        self.execute()
        self.cuda.download(self.output.ctypes.data, self.output_address, self.output.nbytes, self.stream)
        self.cuda.synchronise(self.stream)
        return self.output.astype(np.float32)

    def upload(self, image: Any) -> None:
        np.copyto(self.input, image)
        self.cuda.upload(self.input_address, self.input.ctypes.data, self.input.nbytes, self.stream)

    def execute(self) -> None:
        """Runs the network on what was uploaded last and waits for it."""
        if self.tensor_api:
            done = self.context.execute_async_v3(self.stream)
        else:
            done = self.context.execute_async_v2(self.addresses, self.stream)
        if not done:
            raise BuildError(f"{self.trt.__name__}: the engine did not run; build it again on this device")
        self.cuda.synchronise(self.stream)

    def layer_times(self, runs: int) -> Dict[str, float]:
        """Layer -> mean milliseconds over `runs`, for what was uploaded last. Layers are what TensorRT made of the
        graph, several of whose nodes may be one. Empty where the library has no profiler.
        """
        if not hasattr(self.trt, "IProfiler"):
            return {}

        class Sum(self.trt.IProfiler):  # type: ignore[name-defined]
            def __init__(self, trt: Any) -> None:
                trt.IProfiler.__init__(self)
                self.total: Dict[str, float] = {}

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                self.total[layer_name] = self.total.get(layer_name, 0.0) + ms

        times = Sum(self.trt)
        self.context.profiler = times
        for _ in range(runs):
            self.execute()
        return {name: total / runs for name, total in times.total.items()}

    def close(self) -> None:
        """Gives the GPU's memory back; the engine is of no use afterwards."""
        self.context = self.engine = self.runtime = None
        for address in self.addresses:
            self.cuda.free(address)
        self.cuda.destroy_stream(self.stream)

    def _tensors(self) -> List[Tuple[str, bool, Any]]:
        """(name, is input, an array of its shape in the host's memory) of each tensor, in the order of bindings."""
        engine, found = self.engine, []
        if self.tensor_api:
            for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
                is_input = engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT
                found.append((name, is_input, _array(engine.get_tensor_shape(name), engine.get_tensor_dtype(name))))
        else:
            for number in range(engine.num_bindings):
                shape, dtype = engine.get_binding_shape(number), engine.get_binding_dtype(number)
                found.append((engine.get_binding_name(number), engine.binding_is_input(number), _array(shape, dtype)))
        return found


def _array(shape: Any, dtype: Any) -> Any:
    return np.zeros(tuple(shape), DTYPES[dtype.name])
