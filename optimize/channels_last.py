"""Write pictures with channels last, [batch, height, width, channels], as tensor cores read them.

ONNX Runtime's CUDA provider turns every ``Conv`` to channels last itself under its option
``prefer_nhwc``: it writes a ``Transpose`` before and one after. Here everything between two
convolutions has channels last already, and the opposite transpositions stand around each ``Conv``,
so that they cancel: what remains are those of the network's input and output. ``Conv`` stays the
standard operator, whose filters the provider turns on the GPU when it loads them; ``NhwcConv`` of
ONNX Runtime would need turned copies of them in the graph. The option is therefore part of this
rule.

Shapes that were computed from the picture's are read off a picture of that shape, so that no
arithmetic is left for the CPU.
"""

from __future__ import annotations

import onnx

from bksdm.optimize.cuda_group_norm import has_kernel, write_group_norm
from bksdm.optimize.graph import attributes
from bksdm.optimize.needed import keep_needed
from bksdm.optimize.sizes import Size, Sizes
from bksdm.optimize.stored_weights import stored_sizes
from bksdm.optimize.writer import Writer, declare_domains

TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
# One or several pictures of one shape in, one out.
ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Sigmoid", "Tanh", "Relu", "Clip", "Identity", "Cast"}


def put_channels_last(model: onnx.ModelProto) -> int:
    """Bring all pictures of a network of convolutions into channels last, in place.

    Its inputs and outputs keep their layout. Operators that are not known here read their picture
    with channels first, through a ``Transpose``.

    Returns
    -------
    int
        Number of convolutions.
    """
    layout = _Layout(model.graph)
    nodes = list(model.graph.node)
    for node in nodes:
        layout.rewrite(node)
    for value in model.graph.output:
        layout.first(value.name)
    layout.w.store(model.graph)
    keep_needed(model.graph)
    if layout.convolutions:
        declare_domains(model, "com.microsoft")
    return layout.convolutions


class _Layout:
    """The graph as far as it is rewritten.

    A tensor [batch, channels, …] may have another that holds it with channels last.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.w = Writer()
        self.convolutions = 0
        self._sizes = Sizes(graph)
        self._weights = stored_sizes(graph)
        # Tensors that exist under their own name, and what has the same values as others.
        self._there = {value.name for value in (*graph.input, *graph.initializer)}
        self._same: dict[str, str] = {}
        # The form with channels last of tensors of rank 4 and 3, and how many channels it has.
        self._last: dict[str, str] = {}
        self._flat: dict[str, str] = {}
        self._channels: dict[str, int | None] = {}
        self._pictures = {
            value.name: value.type.tensor_type.shape.dim[1].dim_value or None
            for value in graph.input
            if len(value.type.tensor_type.shape.dim) == 4
        }
        # [batch, 1, 1, channels], to be added to a picture.
        self._spread: dict[str, str] = {}
        # Pictures with channels last for a height and a width.
        self._grids: dict[tuple[Size, Size], list[str]] = {}
        # Pictures that a kernel made with channels last, and which of them a convolution of single
        # pixels read, for what that made: both have the same height and width.
        self._normal: set[str] = set()
        self._read: dict[str, str] = {}

    def rewrite(self, node: onnx.NodeProto) -> None:
        """Write what a node of the graph as it was computes."""
        if node.domain or not self._write(node):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [self.first(name) for name in node.input]
            self.w.nodes.append(copy)
            self._there.update(node.output)

    def first(self, name: str) -> str:
        """Return the name of a tensor as the graph had it."""
        if name in self._same:
            return self._same[name]
        if name and name not in self._there:
            if name in self._last:
                self.w.add("Transpose", name, self._last[name], perm=TO_FIRST)
            elif name in self._flat:
                self.w.add("Transpose", name, self._flat[name], perm=[0, 2, 1])
            self._there.add(name)
        return name

    def _write(self, node: onnx.NodeProto) -> bool:
        """Write a node with channels last, if that can be done."""
        kind = node.op_type
        if kind == "Conv":
            return self._convolve(node)
        if kind in ELEMENTWISE:
            return self._elementwise(node)
        write = {
            "GroupNormalization": self._normalise,
            "Concat": self._join,
            "Resize": self._resize,
            "Transpose": self._transpose,
            "Reshape": self._reshape,
            "Unsqueeze": self._unsqueeze,
        }.get(kind)
        return write is not None and write(node)

    def _form(self, name: str) -> str | None:
        """Return the name of a picture's form with channels last, if it has one."""
        if name in self._pictures and name not in self._last:
            last = self.w.add("Transpose", f"{name}:last", name, perm=TO_LAST)
            self._store(name, last, self._pictures[name])
        return self._last.get(name)

    def _store(self, name: str, last: str, channels: int | None) -> bool:
        self._last[name] = last
        self._channels[last] = channels
        return True

    def _convolve(self, node: onnx.NodeProto) -> bool:
        filters = self._weights.get(node.input[1])
        if filters is None or len(filters) != 4:
            return False
        x, name = node.input[0], node.output[0]
        if x in self._last and x not in self._there:
            last = self._last[x]
            x = self.w.once("Transpose", f"{last}:first", last, perm=TO_FIRST)
        self.w.add("Conv", f"{name}:first", x, *node.input[1:], **attributes(node))
        self.convolutions += 1
        self.w.add("Transpose", f"{name}:last", f"{name}:first", perm=TO_LAST)
        read = self._last.get(node.input[0], "")
        if read in self._normal and self._is_pointwise(node, filters):
            self._read[f"{name}:last"] = read
        return self._store(name, f"{name}:last", filters[0])

    @staticmethod
    def _is_pointwise(node: onnx.NodeProto, filters: tuple[int, ...]) -> bool:
        settings = attributes(node)
        moves = settings.get("strides", [1, 1]) != [1, 1] or any(settings.get("pads", []))
        return filters[2:] == (1, 1) and not moves

    def _elementwise(self, node: onnx.NodeProto) -> bool:
        pictures = [form for form in map(self._form, node.input) if form is not None]
        if not pictures:
            return False
        inputs = []
        for name in node.input:
            form = self._last.get(name) or self._spread.get(name)
            if form is None and (not name or self._weights.get(name) == ()):
                form = name
            if form is None:
                return False
            inputs.append(form)
        channels = next((c for c in map(self._channels.get, pictures) if c), None)
        name = node.output[0]
        last = self.w.add(node.op_type, f"{name}:last", *inputs, **attributes(node))
        return self._store(name, last, channels)

    def _normalise(self, node: onnx.NodeProto) -> bool:
        x, name = node.input[0], node.output[0]
        last = self._form(x) or self._flat.get(x)
        gamma = self._weights.get(node.input[1])
        if last is None or gamma is None:
            return False
        (channels,) = gamma
        if not has_kernel(channels, attributes(node)["num_groups"]):
            return False
        if x in self._last:
            normal = write_group_norm(self.w, f"{name}:last", last, node)
            self._normal.add(normal)
            return self._store(name, normal, channels)
        # Groups are the same before a picture's rows are put together, and the kernel wants rank 4.
        picture = self._picture_of(last)
        if picture is None:
            return False
        normal = write_group_norm(self.w, f"{name}:picture", picture, node)
        self._flat[name] = self._flatten(f"{name}:last", normal, channels)
        return True

    def _picture_of(self, flat: str) -> str | None:
        """Return the picture whose rows were put together."""
        made = next((node for node in reversed(self.w.nodes) if flat in node.output), None)
        if made is None or made.op_type != "Reshape" or made.input[0] not in self._channels:
            return None
        return str(made.input[0])

    def _flatten(self, name: str, picture: str, channels: int) -> str:
        self.w.add("Reshape", name, picture, self.w.whole(0, -1, channels))
        self._channels[name] = channels
        self._channels[picture] = channels
        return name

    def _join(self, node: onnx.NodeProto) -> bool:
        if attributes(node)["axis"] != 1:
            return False
        parts = [form for form in map(self._form, node.input) if form is not None]
        if len(parts) < len(node.input):
            return False
        name = node.output[0]
        last = self.w.add("Concat", f"{name}:last", *parts, axis=3)
        counts = [count for count in map(self._channels.get, parts) if count]
        return self._store(name, last, sum(counts) if len(counts) == len(parts) else None)

    def _resize(self, node: onnx.NodeProto) -> bool:
        x, name = node.input[0], node.output[0]
        settings = attributes(node)
        last = self._form(x)
        _, region, scales, *sizes = [*node.input, "", ""][:4]
        if last is None or region or "axes" in settings:
            return False
        if scales:
            place = self.w.constant_whole("channels_last:order", TO_LAST)
            turned = self.w.once("Gather", f"{scales}:last", scales, place)
            given = ["", turned]
        else:
            entries = self._sizes.entries(sizes[0])
            grids = self._grids.get((entries[2], entries[3]), []) if entries else []
            if grids:
                spatial = self.w.once("Shape", f"{grids[0]}:sides", grids[0], start=1, end=3)
            else:
                ends = (self.w.whole(2), self.w.whole(4))
                spatial = self.w.add("Slice", f"{name}:sides", self.first(sizes[0]), *ends)
            given, settings["axes"] = ["", "", spatial], [1, 2]
        resized = self.w.add("Resize", f"{name}:last", last, *given, **settings)
        return self._store(name, resized, self._channels[last])

    def _transpose(self, node: onnx.NodeProto) -> bool:
        x, name = node.input[0], node.output[0]
        order = attributes(node).get("perm")
        if order == TO_LAST and x in self._last:
            self._same[name] = self._last[x]
        elif order == [0, 2, 1] and x in self._flat:
            self._same[name] = self._flat[x]
        elif order == TO_FIRST and self.first(x) in self._channels:
            self._last[name] = self.first(x)
        elif order == [0, 2, 1]:
            # Only if something wants it so, it is transposed.
            self._flat[name] = self.first(x)
        else:
            return False
        return True

    def _unsqueeze(self, node: onnx.NodeProto) -> bool:
        if self._sizes.entries(node.input[1]) == [2, 3]:
            x, name = self.first(node.input[0]), node.output[0]
            axes = self.w.whole(1, 2)
            self._spread[name] = self.w.add("Unsqueeze", f"{name}:last", x, axes)
        return False

    def _reshape(self, node: onnx.NodeProto) -> bool:
        x, name = node.input[0], node.output[0]
        entries = self._sizes.entries(node.input[1])
        if entries is None or not self._sizes.is_batch(entries[0]):
            return False
        if len(entries) == 3:
            return self._put_rows_together(x, name, entries)
        return len(entries) == 4 and self._take_rows_apart(x, name, entries)

    def _put_rows_together(self, x: str, name: str, entries: list[Size]) -> bool:
        last = self._last.get(x)
        picture = last or self._same.get(x, "")
        channels, pixels = entries[1:] if last else reversed(entries[1:])
        if self._channels.get(picture) != channels or not isinstance(pixels, tuple):
            return False
        if pixels[0] == "Mul":
            grids = self._grids.setdefault((pixels[1], pixels[2]), [])
            # First what is no transposition, which ONNX Runtime moves past a Shape with a Gather.
            grids += [self._read[picture], picture] if picture in self._read else [picture]
        if last:
            self._flat[name] = self._flatten(f"{name}:last", picture, channels)
        else:
            self._flatten(name, picture, channels)
            self._there.add(name)
        return True

    def _take_rows_apart(self, x: str, name: str, entries: list[Size]) -> bool:
        flat = self._flat.get(x)
        channels, height, width = (entries[i] for i in ((1, 2, 3) if flat else (3, 1, 2)))
        grids = self._grids.get((height, width), [])
        grid = next((grid for grid in grids if self._channels[grid] == channels), None)
        if grid is None or not isinstance(channels, int):
            return False
        shape = self.w.once("Shape", f"{grid}:shape", grid)
        if flat:
            return self._store(name, self.w.add("Reshape", f"{name}:last", flat, shape), channels)
        self.w.add("Reshape", name, self.first(x), shape)
        self._there.add(name)
        self._channels[name] = channels
        return True
