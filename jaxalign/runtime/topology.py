"""Chips by name, and the devices of a slice that this machine does not have.

`jax.experimental.topologies` describes such devices to the compiler. A program lowered for a mesh
of them compiles, and shows what memory and work it needs, but it cannot run.

"cpu:16" is a computer without an accelerator and with 16 GiB of memory. Its programs are compiled
by this machine's own compiler, for one device.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from types import MappingProxyType
from typing import Any

import jax
from jax.experimental import topologies

from jaxalign.core.errors import UserError
from jaxalign.runtime.memory import PROCESS_BASE_BYTES
from jaxalign.runtime.platform import Platform

CPU = "cpu"


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of one chip, as its maker states them.

    Attributes:
        name: Kind of chip, such as "v5e".
        memory_bytes: Memory that programs may use.
        flops_per_second: Dense bfloat16 products, accumulated in float32.
        memory_bytes_per_second: Between the chip and its memory.
        link_bytes_per_second: Out of one chip along one mesh axis: one link, one direction.
        slices: Shapes that can be rented, in ascending order.
    """

    name: str
    memory_bytes: int
    flops_per_second: float
    memory_bytes_per_second: float
    link_bytes_per_second: float
    slices: tuple[str, ...]

    def topologies(self) -> list[Topology]:
        """Return every slice that can be rented, the smallest first."""
        return [Topology(self, tuple(map(int, shape.split("x")))) for shape in self.slices]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")

# FLOP/s and bandwidth: Google Cloud's TPU pages, "System architecture" (cloud.google.com/tpu/docs),
# and NVIDIA's H200 data sheet (SXM, without sparsity). Memory that programs may use: the limit that
# the compiler itself states in its out-of-memory messages; for the H200, what the driver leaves of
# 141 GB. Links: the bits per second of a chip on those pages, divided by its links (4 in a flat
# torus, 6 in a cube) and by two directions; NVLink 4 has 900 GB/s in both directions together.
CHIPS = MappingProxyType(
    {
        "v4": Chip("v4", int(30.75 * 2**30), 275e12, 1228e9, 50e9, _CUBES),
        "v5e": Chip("v5e", int(15.75 * 2**30), 197e12, 819e9, 50e9, _FLAT),
        "v5p": Chip("v5p", int(95.74 * 2**30), 459e12, 2765e9, 100e9, _CUBES),
        "v6e": Chip("v6e", int(31.25 * 2**30), 918e12, 1640e9, 112e9, _FLAT),
        "h200": Chip("h200", int(139.8 * 2**30), 989e12, 4800e9, 450e9, ("1", "2", "4", "8")),
    }
)


# What the compiler of the CUDA plugin needs to know about a device, as the text of XLA's
# GpuTargetConfigProto: limits of compute capability 9.0 (CUDA programming guide), and sizes and
# rates of the H200.
_H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 151397597184
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H200"
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of a number of chips of one kind, named "v5e:16x16" or "h200:8", or "cpu:16"."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        if self.chip.name == CPU:
            return f"{CPU}:{self.chip.memory_bytes // 2**30}"
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape)

    @property
    def platform(self) -> Platform:
        """What JAX calls the platform of the chips."""
        return {"h200": "gpu", CPU: "cpu"}.get(self.chip.name, "tpu")

    @property
    def is_tpu(self) -> bool:
        return self.platform == "tpu"

    @property
    def program_bytes(self) -> int:
        """Memory of a chip that programs may use.

        On a CPU that is what the process itself and the compiler leave of the memory.
        """
        base = PROCESS_BASE_BYTES if self.platform == "cpu" else 0
        return self.chip.memory_bytes - base


def parse_topology(name: str) -> Topology:
    """Return the topology with a name such as "v5e:16x16".

    Raises:
        UserError: The chip is unknown, or its slices have another number of dimensions.
    """
    if cpu := re.fullmatch(rf"{CPU}:(\d+)", name.strip().lower()):
        # Peak rates of a CPU that is not here are not known.
        return Topology(Chip(CPU, int(cpu[1]) * 2**30, math.nan, math.nan, math.nan, ("1",)), (1,))
    match = re.fullmatch(r"([a-z]+\d+[a-z]?):(\d+(?:x\d+)*)", name.strip().lower())
    if not match or match[1] not in CHIPS:
        known = ", ".join(f"{chip.name}:{chip.slices[-1]}" for chip in CHIPS.values())
        raise UserError(f"`topology` {name!r} is not known; write one like {known}, cpu:16")
    chip, shape = CHIPS[match[1]], tuple(map(int, match[2].split("x")))
    dimensions = len(chip.slices[0].split("x"))
    if len(shape) != dimensions or min(shape) < 1:
        raise UserError(
            f"`topology` {name!r}: {chip.name} has {dimensions} dimensions, such as "
            f"{chip.name}:{chip.slices[-1]}"
        )
    return Topology(chip, shape)


def described_devices(topology: Topology) -> list[Any]:
    """Return one device per chip, which only the compiler can use.

    The device of a CPU is this machine's own.

    For others the compilation cache is turned off: a program that was compiled for chips this
    machine lacks cannot be read back without them.

    Raises:
        UserError: The compiler is not installed, or does not know the topology.
    """
    if topology.platform == "cpu":
        return jax.devices("cpu")[:1]
    jax.config.update("jax_enable_compilation_cache", False)
    return _tpu_devices(topology) if topology.is_tpu else _gpu_devices(topology)


def _tpu_devices(topology: Topology) -> list[Any]:
    # libtpu asks the cloud which machine this is, and lets only one process at a time use the
    # chips. Neither is wanted where it only compiles.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # of this machine; any existing type will do
    }.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {}
    if topology.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # two cores as one device, as on a real v4
    if topology.num_chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **options
        )
    except (ImportError, FileNotFoundError, RuntimeError) as error:
        raise _no_compiler(topology, "libtpu: pip install 'jaxalign[tpu]'", error) from None
    return _counted(topology, described.devices)


def _gpu_devices(topology: Topology) -> list[Any]:
    try:
        described = topologies.get_topology_desc(
            platform="cuda", topology=f"1x1x{topology.num_chips}", target_config=_H200
        )
    except (ImportError, NotImplementedError, RuntimeError) as error:
        wanted = "JAX's CUDA plugin: pip install 'jaxalign[cuda]'"
        raise _no_compiler(topology, wanted, error) from None
    return _counted(topology, described.devices)


def _no_compiler(topology: Topology, wanted: str, error: Exception) -> UserError:
    return UserError(f"{topology.name} cannot be planned here ({error}); it needs {wanted}")


def _counted(topology: Topology, devices: list[Any]) -> list[Any]:
    if len(devices) != topology.num_chips:
        raise UserError(
            f"{topology.name} should have {topology.num_chips} devices, but the compiler "
            f"describes {len(devices)}"
        )
    return devices
