"""A pretend accelerator for tests: memory of the CPU under the name of another device.

:func:`switch_on` gives PyTorch two devices, ``fake:0`` and ``fake:1``. What CUDA refuses is refused
(tensors of two devices in one operator, ``.numpy()``, a generator of another device, operators of
the CPU's own); what it lets through is let through (numbers of no dimension, CPU indices in
``x[i]``, copies). It cannot be taken back, and ``torch.accelerator`` finds it from then on: switch
it on in a process of its own.

What it does not have: streams, anything that happens later, a caching allocator, the rounding of
CUDA's kernels; attention takes the plain path, whose table of scores counts as memory.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
import types
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from platformdirs import user_cache_path
from torch.utils import cpp_extension

NAME = "fake"
SOURCE = Path(__file__).parent / "backend.cpp"
OPTIONS = ("-shared", "-fPIC", "-O0", "-g0")
LIBRARIES = ("-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python")


class NoCompiler(RuntimeError):
    """What is needed to build the device is not on this machine."""


def compiler() -> str:
    """Return the C++ compiler, or say what is missing.

    Raises
    ------
    NoCompiler
    """
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    if path is None:
        raise NoCompiler(f"the pretend device needs a C++ compiler, and there is no {name} here")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise NoCompiler("the pretend device needs Python.h, the headers of Python")
    return path


def build() -> Path:
    """Compile the device, once for a source and a version of PyTorch: a minute or two.

    Raises
    ------
    NoCompiler
        If there is no compiler, or it cannot do it.
    """
    told = (SOURCE.read_bytes(), torch.__version__.encode(), sysconfig.get_config_var("SOABI"))
    digest = hashlib.sha256(repr(told).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("PRETEND_DEVICE_BUILD") or user_cache_path("twohop"))
    target = folder / f"pretend-device-{digest}" / "pretend_backend.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as own:
        made = Path(own, target.name)
        command = [
            compiler(),
            *OPTIONS,
            f"-std={cpp_standard()}",
            "-DTORCH_API_INCLUDE_EXTENSION_H",
            "-DTORCH_EXTENSION_NAME=pretend_backend",
            *(f"-isystem{path}" for path in cpp_extension.include_paths()),
            f"-isystem{sysconfig.get_path('include')}",
            str(SOURCE),
            "-o",
            str(made),
            *(f"-L{path}" for path in cpp_extension.library_paths()),
            *LIBRARIES,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoCompiler(f"the pretend device cannot be built here: {done.stderr[-2000:]}")
        made.replace(target)  # others that build it meanwhile find all of it or nothing
    return target


def build_or_skip() -> None:
    """Build it for a test, which is skipped with the reason where that cannot be done."""
    try:
        build()
    except NoCompiler as error:
        pytest.skip(str(error))


def cpp_standard() -> str:
    """Of which C++ this PyTorch's headers are."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    return "c++20" if version >= (2, 13) else "c++17"


class _On:
    """``with torch.fake.device(1):`` as of ``torch.cuda.device``."""

    def __init__(self, backend: Any, device: object) -> None:
        self.backend, self.index = backend, _index(device)

    def __enter__(self) -> None:
        self.before = self.backend.current_device()
        self.backend.set_device(self.index)

    def __exit__(self, *_: object) -> None:
        self.backend.set_device(self.before)


def _index(device: object) -> int:
    return device if isinstance(device, int) else torch.device(str(device)).index or 0


def _device_module(backend: Any) -> types.ModuleType:
    """What ``torch.fake`` has, as ``torch.cuda`` has it."""
    module: Any = types.ModuleType(f"torch.{NAME}")
    module.is_available = lambda: True
    module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.device_count = backend.device_count
    module.current_device = backend.current_device
    module.set_device = lambda device: backend.set_device(_index(device))
    module.device = lambda device: _On(backend, device)
    module.synchronize = lambda device=None: None
    module.empty_cache = lambda: None
    module.is_bf16_supported = lambda: True
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16, torch.float32]
    module.memory_allocated = lambda device=0: backend.in_use(_index(device))
    module.max_memory_allocated = lambda device=0: backend.peak(_index(device))
    module.reset_peak_memory_stats = lambda device=0: backend.reset_peak(_index(device))
    limits: dict[int, int] = {}
    held: dict[int, int] = {}

    def set_memory_limit(size: int, device: object = 0) -> None:
        """Let a device have so many bytes; 0: as many as there are."""
        limits[_index(device)] = size
        backend.limit(_index(device), size)

    def hold(size: int, device: object = 0) -> None:
        """Let it seem that so many bytes are held for later, as a caching allocator does."""
        held[_index(device)] = size

    def mem_get_info(device: object = 0) -> tuple[int, int]:
        total = limits.get(_index(device)) or psutil.virtual_memory().available
        return max(0, total - module.memory_reserved(device)), total

    module.set_memory_limit, module.hold, module.mem_get_info = set_memory_limit, hold, mem_get_info
    module.memory_reserved = lambda device=0: (
        backend.in_use(_index(device)) + held.get(_index(device), 0)
    )
    module.counts = backend.counts  # of operators, reads from the device and writes to it
    module.fail = backend.fail  # a device, after so many more operators; -1: it is there again
    module.refuse_float64 = backend.refuse_float64  # as Apple's devices do
    generators = tuple(map(backend.default_generator, range(backend.device_count())))
    module.default_generators = generators

    def manual_seed_all(seed: int) -> None:
        for generator in generators:
            generator.manual_seed(seed)

    def get_rng_state(device: object = 0) -> torch.Tensor:
        return generators[_index(device)].get_state()

    def set_rng_state(state: torch.Tensor, device: object = 0) -> None:
        generators[_index(device)].set_state(state)

    module.manual_seed_all = module.manual_seed = manual_seed_all
    module.get_rng_state, module.set_rng_state = get_rng_state, set_rng_state
    return module


def switch_on() -> Any:
    """Give PyTorch the two devices; return ``torch.fake``.

    Raises
    ------
    NoCompiler
    """
    spec = importlib.util.spec_from_file_location("pretend_backend", build())
    assert spec is not None
    assert spec.loader is not None
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    own: Any = torch.utils
    own.rename_privateuse1_backend(NAME)
    module = _device_module(backend)
    torch._register_device_module(NAME, module)
    own.generate_methods_for_privateuse1_backend()
    return module
