"""What is called of TensorRT exists: in the packages themselves, of every version that is admitted.

Nothing else would notice: where there is no GPU, plans run on the simulation of tests/cuda only.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from bksdm.engines.tensorrt import BUILD_FLAGS, load_module

ROOT = Path(__file__).parents[2]
TABLE = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text(encoding="utf-8"))
TENSOR = "ITensor"
OBJECTS = {
    "optimize/plan.py": {
        "trt": "",
        "builder": "Builder",
        "network": "INetworkDefinition",
        "network.get_input(i)": TENSOR,
        "network.get_input(index)": TENSOR,
        "network.get_output(i)": TENSOR,
        "layer": "ILayer",
        "tensor": TENSOR,
        "output": TENSOR,
        "output.dtype": "DataType",
        "parser": "OnnxParser",
        "parser.get_error(0)": "ParserError",
        "config": "IBuilderConfig",
        "shapes": "IOptimizationProfile",
    },
    "engines/tensorrt_context.py": {
        "trt": "",
        "self._runtime": "Runtime",
        "self._engine": "ICudaEngine",
        "self._config": "IRuntimeConfig",
        "self._kernels": "IRuntimeCache",
        "context": "IExecutionContext",
        "self.context": "IExecutionContext",
    },
    "engines/timings.py": {
        "config": "IBuilderConfig",
        "config.get_timing_cache()": "ITimingCache",
    },
}
"""What TensorRT's objects are called where they are used; with classes by their own names."""
RTX_ONLY = {
    "DynamicShapesKernelSpecializationStrategy",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IExecutionContext.is_stream_capturable",
    "IRuntimeCache.deserialize",
    "IRuntimeCache.serialize",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.set_runtime_cache",
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "ComputeCapability",
    "ComputeCapability.__members__",
}
"""tests/cuda/test_plans.py draws on a tensorrt without these."""


def uses():
    """Return every name that is used, as ``Class.name``."""
    found = {f"BuilderFlag.{flag}" for flags in BUILD_FLAGS.values() for flag in flags}
    for file, objects in OBJECTS.items():
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        seen = set()
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            base = ast.unparse(node.value)
            if base in objects:
                seen.add(base)
                found.add(f"{objects[base]}.{node.attr}".removeprefix("."))
            elif base.startswith("trt.") and base.count(".") == 1:
                found.add(f"{base.removeprefix('trt.')}.{node.attr}")
            else:
                # What an object returned has to be known, too.
                rooted = re.match(r"[\w.]+?(?=\.\w+\()", base)
                assert not rooted or rooted[0] not in objects, f"{file}: what is {base}?"
        assert seen == set(objects), f"{file}: {set(objects) - seen} is not used"
    return found


def missing(flavour):
    names = {of: set(listed.split()) for of, listed in TABLE[flavour]["names"].items()}
    split = (use.rpartition(".") for use in uses())
    return {
        f"{of}.{name}".removeprefix(".") for of, _, name in split if name not in names.get(of, ())
    }


@pytest.mark.parametrize(("flavour", "allowed"), [("tensorrt", RTX_ONLY), ("tensorrt-rtx", set())])
def test_every_admitted_version_has_what_is_used(flavour, allowed):
    """If a class is new, list_tensorrt_names.py has to list it and write the table anew."""
    assert missing(flavour) == allowed


@pytest.mark.parametrize(
    ("requirement", "flavour"), [("tensorrt", "tensorrt"), ("tensorrt-rtx-cu13", "tensorrt-rtx")]
)
def test_the_table_begins_with_the_oldest_that_is_admitted(requirement, flavour):
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (oldest,) = re.findall(rf'"{requirement}>=([\d.]+)"', project)
    assert TABLE[flavour]["versions"][0].startswith(f"{oldest}.")


def test_the_installed_package_has_what_is_used():
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    trt = load_module("tensorrt-rtx")
    for use in uses():
        found = trt
        for name in use.split("."):
            assert hasattr(found, name), use
            found = getattr(found, name)
    assert len(uses()) > 60
