"""Run a network with OpenVINO on the CPU."""

from __future__ import annotations

import functools
import mmap
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bksdm.engines.backend import Backend, Capabilities
from bksdm.engines.errors import BksdmError, EngineError
from bksdm.engines.lora_inputs import is_factor
from bksdm.engines.preparing import Preparation, open_prepared
from bksdm.engines.protocol import Array, TensorSpec, validate_feeds
from bksdm.optimize.rules import PLAIN, USUAL, CostModel, MadeFor, Rules
from bksdm.storage.graph_file import GraphFile
from bksdm.storage.mapped_weights import drop_pages, map_file, tensor_at
from bksdm.storage.precision import BFLOAT16, FLOAT32, INT8, LOWER, PRECISIONS
from bksdm.storage.processor import computes_bfloat16
from bksdm.storage.stored_graph import Prepared

RULES = Rules(winograd=CostModel(0.9, 25, 16))
# Above so many bytes of weights a network compiled for one shape is hardly faster in float32 (3 %
# of a full-size UNet; 11 % in bfloat16), and each has a copy of the weights.
LARGE = 128 * 2**20
# With and without guidance, for two sizes or one.
KEPT_SHAPES, KEPT_SHAPES_OF_LARGE = 4, 2

_Specs = Mapping[str, TensorSpec]
_Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class OpenVinoEngine:
    """A network in OpenVINO, computed in the precision that is asked for, not in its default.

    A large network in float32 is compiled once for every batch, height and width; others for each
    of them when it first comes, which runs a tenth to a fifth faster. What is compiled is not
    stored: that takes a second or two, and a stored network of gigabytes would save one of them.
    Threads may share it; they run one after the other, for a compiled network has one set of
    tensors.

    Parameters
    ----------
    model : Path
        ``model.onnx``; its external data lies beside it.
    threads : int, optional
        CPU threads; by default one per physical core.
    made_for : MadeFor
        What the graph is made fastest for.
    cache : Path, optional
        Folder for the rewritten graph, so that later starts skip the rewriting.
    variant : str
        Of :mod:`bksdm.engines.variants`.
    precision : str
        ``float32``, ``bfloat16``, or ``int8`` for a graph that is quantised: what is not, is
        computed in bfloat16 then, if the processor does that.

    Raises
    ------
    EngineError
        OpenVINO is not installed, the model cannot be loaded, or the processor does not compute
        bfloat16.
    """

    def __init__(
        self,
        model: Path,
        threads: int | None = None,
        made_for: MadeFor = USUAL,
        cache: Path | None = None,
        variant: str = "",
        precision: str = FLOAT32.name,
    ) -> None:
        if threads is not None and threads < 1:
            raise EngineError(f"threads must be at least 1, not {threads}")
        self._name = f"{model.parent.name}/{model.name}"
        self._core = _core()
        self._options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        exact = precision not in LOWER
        if not exact:
            if computes_bfloat16():
                self._options["INFERENCE_PRECISION_HINT"] = "bf16"
            elif precision == BFLOAT16:
                raise EngineError(
                    "this processor does not compute bfloat16, which takes AVX512_BF16 or AMX; "
                    "use float32"
                )
            # Products so fast cost less than Winograd's transforms.
            made_for = PLAIN
        if threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = str(threads)
        self._requests: OrderedDict[_Shapes, Any] = OrderedDict()
        self._running = threading.Lock()
        self._copied = False
        preparation = Preparation(
            backend="openvino",
            model=model,
            variant=variant,
            rules=RULES,
            made_for=made_for,
            as_inputs=True,
        )
        try:
            self._network, self.inputs, self.outputs, size = open_prepared(
                preparation, cache, self._read
            )
            self._kept = KEPT_SHAPES_OF_LARGE if size > LARGE else KEPT_SHAPES
            self._whole = self._compile() if size > LARGE and exact else None
        except BksdmError:
            raise
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise EngineError(f"{self._name}: cannot be loaded ({_reason(error)})") from error

    def _read(self, graph: Prepared) -> tuple[Any, _Specs, _Specs, int]:
        """Return the network, its inputs and outputs, and the bytes of graph and weights."""
        weights, self._files = _read_weights(graph)
        described = GraphFile.parse(graph.content)
        inputs = {name: spec for name, spec in described.inputs.items() if name not in weights}
        network = self._core.read_model(graph.content)
        _give_weights(network, weights)
        size = len(graph.content) + sum(weight.nbytes for weight in weights.values())
        return network, MappingProxyType(inputs), described.outputs, size

    def __call__(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run the network; the results are copies, for the next run writes over OpenVINO's own."""
        validate_feeds(self._name, self.inputs, feeds)
        try:
            with self._running:
                # The ranks of LoRAs stay open, so that no other one has to be compiled for.
                shapes = {n: tuple(a.shape) for n, a in feeds.items() if not is_factor(n)}
                request = self._whole or self._for(shapes)
                results = request.infer(dict(feeds), share_inputs=True)
                if not self._copied:
                    # Some are copied in the first run only.
                    self._drop_weights()
                    self._copied = True
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise EngineError(f"{self._name}: failed to run ({_reason(error)})") from error
        return {name: results[name] for name in self.outputs}

    def save(self, path: Path) -> None:
        """Write the network, as it was rewritten, in OpenVINO's own format.

        Parameters
        ----------
        path : Path
            Ends in ``.xml``; the weights go into a file of that name that ends in ``.bin``, in the
            types that they have.

        Raises
        ------
        EngineError
            It cannot be written.
        """
        import openvino

        try:
            openvino.save_model(self._network, path, compress_to_fp16=False)
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise EngineError(f"{self._name}: cannot be saved ({_reason(error)})") from error

    def _for(self, shapes: dict[str, tuple[int, ...]]) -> Any:
        """Return the network compiled for some shapes, one of the last few or a new one."""
        key = tuple(sorted(shapes.items()))
        if key not in self._requests:
            while len(self._requests) >= self._kept:
                self._requests.popitem(last=False)
            self._network.reshape({name: list(shape) for name, shape in shapes.items()})
            self._requests[key] = self._compile()
        self._requests.move_to_end(key)
        return self._requests[key]

    def _compile(self) -> Any:
        compiled = self._core.compile_model(self._network, "CPU", self._options)
        self._drop_weights()
        self._copied = False
        return compiled.create_infer_request()

    def _drop_weights(self) -> None:
        """Let go of the weights: OpenVINO has copies of nearly all, in its kernels' order."""
        for file in self._files:
            drop_pages(file)


@functools.cache
def _core() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise EngineError(BACKENDS[0].missing) from error
    return openvino.Core()


def _read_weights(graph: Prepared) -> tuple[dict[str, Array], Sequence[mmap.mmap]]:
    """Return the weights that are inputs by name, and the files that they are mapped from.

    Raises
    ------
    OSError, ValueError
        A file is missing or too short.
    """
    weights: dict[str, Array] = {}
    files: dict[str, mmap.mmap] = {}
    for name, (dtype, shape, file, offset) in (graph.inputs or {}).items():
        if file not in files:
            files[file] = map_file(graph.root / file)
        weights[name] = tensor_at(files[file], dtype, shape, offset)
    return weights, tuple(files.values())


def _give_weights(network: Any, weights: Mapping[str, Array]) -> None:
    """Put constants in the place of inputs; they use the memory that they are given."""
    from openvino.op import Constant

    for source in list(network.inputs):
        weight = weights.get(source.get_any_name())
        if weight is None:
            continue
        constant = Constant(weight, shared_memory=True).output(0)
        parameter = source.get_node()
        for target in parameter.output(0).get_target_inputs():
            target.replace_source_output(constant)
        network.remove_parameter(parameter)
    network.validate_nodes_and_infer_types()


def _reason(error: Exception) -> str:
    """Return the first line that says more than where in OpenVINO's code something failed."""
    text = str(error)
    lines = (line.strip(" -") for line in (text.partition("Summary:")[2] or text).splitlines())
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return next(iter(said), repr(error))[:300]


BACKENDS = (
    Backend(
        Capabilities(
            "openvino",
            feature_reuse=True,
            control=True,
            loras=True,
            precisions=(*PRECISIONS, BFLOAT16, INT8),
        ),
        ("openvino",),
        "openvino",
        RULES,
        lambda model, threads, cache, made_for, variant, precision: OpenVinoEngine(
            model, threads, made_for, cache, variant, precision
        ),
        on_cpu=True,
        check=_core,
    ),
)
