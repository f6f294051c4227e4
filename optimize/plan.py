"""Build TensorRT plans from a bundle's graphs: parse, check the types, build.

One file for ``tensorrt`` and ``tensorrt_rtx``: their Python interfaces are the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from bksdm.engines.errors import EngineError
from bksdm.engines.profile import Profile
from bksdm.engines.tensorrt import BUILD_FLAGS, has_attention_kernel, load_module
from bksdm.engines.timings import attach, keep
from bksdm.optimize.attention import decompose_attention
from bksdm.optimize.graph import load_graph

# A float32 tensor of one value is a constant of the graph, not a weight or an activation.
SCALAR = 1

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Plan:
    """A built network.

    Attributes
    ----------
    content
        The serialised plan.
    dtypes
        Number of tensors of each type in the network TensorRT was given.
    """

    content: bytes
    dtypes: dict[str, int]


def build(
    model: Path,
    component: str,
    flavour: str,
    targets: Sequence[str],
    profile: Profile,
    progress: Progress | None = None,
    timings: Path | None = None,
) -> Plan:
    """Build the plan of one network.

    Parameters
    ----------
    model : Path
        Its graph; the types in it are the types that are computed in.
    component : str
        ``text_encoder``, ``unet``, ``vae_decoder`` or ``vae_encoder``.
    flavour : str
        ``tensorrt`` builds for the GPU that is present, ``tensorrt-rtx`` for ``targets``.
    targets : sequence of str
        Compute capabilities such as ``sm89``; of no effect on ``tensorrt``.
    profile : Profile
        Batches and sizes.
    progress : callable, optional
        Called with the phase and the part of it that is done, 0 … 1.
    timings : Path, optional
        File that keeps what TensorRT measured for the next build. TensorRT RTX measures nothing.

    Raises
    ------
    EngineError
        The graph cannot be parsed, computes in float32 what it should in float16, or cannot be
        built; a target is unknown.
    """
    trt = load_module(flavour)
    messages = _messages(trt)
    builder = trt.Builder(messages)
    # Strongly typed: from TensorRT 11 on, and in TensorRT RTX, there is nothing else.
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, messages)
    proto = load_graph(model)
    decompose_attention(proto, has_attention_kernel)
    if not parser.parse(proto.SerializeToString(), str(model)):
        raise EngineError(f"{component}: TensorRT cannot read the graph ({_first(parser)})")
    dtypes = validate_types(trt, network, component)
    config = builder.create_builder_config()
    for flag in BUILD_FLAGS[flavour]:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    _aim(config, flavour, targets)
    config.add_optimization_profile(_shapes(builder, network, proto, component, profile))
    if progress is not None:
        config.progress_monitor = _monitor(trt, progress)
    if timings is not None:
        attach(config, timings)
    content = builder.build_serialized_network(network, config)
    if content is None:
        raise EngineError(f"{component}: TensorRT cannot build it ({messages.last or 'no reason'})")
    if timings is not None:
        keep(config, timings)
    return Plan(bytes(content), dtypes)


def validate_types(trt: Any, network: Any, component: str) -> dict[str, int]:
    """Count tensors by type and refuse float32 in a float16 network.

    Networks are strongly typed: a graph in float32 gives a plan in float32, twice as large and
    several times slower, without a word. Float32 is right in two places: single values, and what
    depends on the timestep alone, up to its cast to float16.

    Raises
    ------
    EngineError
        Names the first tensors that are float32 for another reason.
    """
    counts: Counter[str] = Counter()
    of_timestep = {"timestep"}
    suspects: dict[str, str] = {}
    feeds: dict[str, set[bool]] = {}
    half = any(network.get_input(i).dtype == trt.float16 for i in range(network.num_inputs)) or any(
        network.get_output(i).dtype == trt.float16 for i in range(network.num_outputs)
    )
    constants: set[str] = set()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        names = [tensor.name for tensor in inputs if tensor is not None]
        variable = [name for name in names if name not in constants]
        timed = bool(variable) and all(name in of_timestep for name in variable)
        for name in names:
            feeds.setdefault(name, set()).add(timed)
        for number in range(layer.num_outputs):
            output = layer.get_output(number)
            counts[output.dtype.name.lower()] += 1
            if not variable:
                constants.add(output.name)
            if timed:
                of_timestep.add(output.name)
            elif output.dtype == trt.float32 and math.prod(output.shape) != SCALAR:
                suspects[output.name] = layer.name
    wrong = [
        f"{name} of {layer}"
        for name, layer in suspects.items()
        if not (name in constants and feeds.get(name) == {True})
    ]
    if half and wrong:
        raise EngineError(
            f"{component}: {len(wrong)} tensors are float32 in a float16 graph, "
            f"first {', '.join(wrong[:3])}"
        )
    return dict(counts)


def validate_targets(targets: Sequence[str]) -> dict[str, Any]:
    """Return TensorRT RTX's constants for compute capabilities such as ``sm89``.

    Raises
    ------
    EngineError
        There is none, or one is unknown; lists the known.
    """
    trt = load_module("tensorrt-rtx")
    known = {
        name.lower(): value
        for name, value in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    unknown = [target for target in targets if target not in known]
    if unknown or not targets:
        raise EngineError(
            f"target {', '.join(unknown) or 'missing'}; known to tensorrt-rtx: {', '.join(known)}"
        )
    return {target: known[target] for target in targets}


def _aim(config: Any, flavour: str, targets: Sequence[str]) -> None:
    if flavour != "tensorrt-rtx":
        return
    capabilities = validate_targets(targets)
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities.values()):
        config.set_compute_capability(capability, index)


def _shapes(
    builder: Any, network: Any, proto: onnx.ModelProto, component: str, profile: Profile
) -> Any:
    axes = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.input}
    shapes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        ranges = [
            (d.dim_value,) * 3
            if d.HasField("dim_value")
            else profile.axis(component, d.dim_param).values
            for d in axes[name]
        ]
        low, typical, high = ([r[i] for r in ranges] for i in range(3))
        shapes.set_shape(name, low, typical, high)
    return shapes


def _first(parser: Any) -> str:
    return str(parser.get_error(0).desc()) if parser.num_errors else "no reason given"


def _messages(trt: Any) -> Any:
    """Return a logger that keeps the last error and prints nothing."""

    class Messages(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = message

    return Messages()


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self._steps[name] = steps

        def step_complete(self, name: str, step: int) -> bool:
            progress(name, (step + 1) / max(1, self._steps.get(name, 1)))
            return True

        def phase_finish(self, name: str) -> None:
            progress(name, 1.0)

    return Monitor()
