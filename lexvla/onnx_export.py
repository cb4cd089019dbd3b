"""Exporting models as ONNX graphs that read their weights from the model's own files.

    text.onnx       token ids and the prompt's keys and values -> word logits, dense, codes
    terms.onnx      mixtures of the vocabulary's terms -> the same
    image.onnx      uint8 pixels -> states of patches
    patches.onnx    states of patches -> the same as of a text, and the patch of each word

The graphs hold no weights: an initialiser names the tensor's place in a safetensors file, so
either runtime reads the same bytes. ONNX Runtime turns float16 into float32 when it loads them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache

from lexvla import model_folder, saving
from lexvla.errors import OptionalDependencyError, UnsupportedError
from lexvla.onnx_format import FORMAT_VERSION, GRAPHS, OPSET

if TYPE_CHECKING:
    from lexvla.torch_model import TorchLexVLA

__all__ = ["export_model"]

_TYPES = {"F16": 10, "BF16": 16, "F32": 1, "I32": 6, "I64": 7}  # of ONNX
_FLOAT = 1
_HIDDEN = -1e9  # what masks a token
_ATTENTION = "lexvla_prefix"


def export_model(path: str | Path | None, out: str | Path) -> None:
    """Write a model with its graphs into a folder, which may be the model's own.

    Args:
        path: A saved model's folder or hub id; by default the one that ships with the package.
        out: The folder; the model's other files are copied there.

    Raises:
        UnsupportedError: The model is quantised, has LoRA, or leaves out a backbone.
        OptionalDependencyError: A package of the extra ``export`` is missing.
    """
    from lexvla.torch_model import TorchLexVLA

    onnx = _import("onnx")
    _import("onnxscript")
    source, target = model_folder.find_folder(path, None, None), Path(out)
    config = saving.read_config(source)
    if config.quantization != "none":
        rule = "load the model with quantization='none' and save it"
        raise UnsupportedError(f"{source}: quantised weights cannot be exported; {rule}")
    if config.lora_rank:
        rule = "load the model with merge_lora=True and save it"
        raise UnsupportedError(f"{source}: LoRA beside the weights cannot be exported; {rule}")
    if named := config.text_model or config.vision_model:
        rule = "set config.text_model and config.vision_model to None and save it"
        raise UnsupportedError(f"{source}: the weights of {named} are not in the folder; {rule}")
    model = TorchLexVLA.from_pretrained(source)
    places = _places(source, config.has_map)
    graphs = {}
    for name in GRAPHS:
        graph = _patches_graph(onnx, model) if name == "patches.onnx" else _traced(name, model)
        _read_weights_from_files(onnx, graph, places)
        graphs[name] = graph.SerializeToString()
    if source.resolve() != target.resolve():
        shutil.copytree(source, target, dirs_exist_ok=True)
    (target / model_folder.CONFIG_FILE).unlink()  # last again: without it, the folder is incomplete
    for name, graph in graphs.items():
        (target / name).write_bytes(graph)
    digests = {name: hashlib.sha256(graph).hexdigest() for name, graph in graphs.items()}
    config.graphs = {"format_version": FORMAT_VERSION, "sha256": digests}
    config.save_pretrained(target)


def _import(package: str) -> ModuleType:
    try:
        return import_module(package)
    except ImportError as error:
        raise OptionalDependencyError(package, "export") from error


class _Head(nn.Module):
    """Word logits of states, and dense vectors and codes if the model has them."""

    def __init__(self, model: TorchLexVLA) -> None:
        super().__init__()
        self.model = model
        ids = torch.tensor(model.vocabulary.token_ids)
        self.register_buffer("token_ids", ids, persistent=False)

    def rows(self) -> Tensor:
        output = self.model.text_tower.language_model.get_output_embeddings()
        rows: Tensor = output.weight[self.token_ids]
        return rows

    def outputs(self, states: Tensor) -> tuple[Tensor, ...]:
        return (states @ self.rows().T, *_dense_outputs(self.model, states, "text"))


class _Text(_Head):
    """Texts behind a prefix whose keys and values, (2 layers, heads, n, d), are given."""

    def __init__(self, model: TorchLexVLA) -> None:
        super().__init__(model)
        self.prefix = _Prefix()
        AttentionInterface.register(_ATTENTION, self.prefix.attend)
        model.text_tower.language_model.set_attn_implementation(_ATTENTION)
        # Only the last token's state is read, so its layer's network need not run for others; that
        # of the other tokens is wrong from here on.
        last = model.text_tower.language_model.get_decoder().layers[-1]
        last.mlp.register_forward_pre_hook(lambda _, states: (states[0][:, -1:],))

    def forward(self, ids: Tensor, mask: Tensor, past: Tensor) -> tuple[Tensor, ...]:
        batch, length = ids.shape
        shared = past.shape[-2]
        self.prefix.past = past
        real = torch.cat([torch.ones(batch, shared, dtype=mask.dtype), mask], dim=1)
        order = torch.arange(shared + length)
        seen = (order[None] <= order[shared:, None])[None] & real.bool()[:, None]
        own = _NewTokens()
        output = self.model.text_tower.language_model.get_decoder()(
            input_ids=ids,
            attention_mask=torch.where(seen, 0.0, _HIDDEN)[:, None],
            position_ids=(real.cumsum(1) - 1).clamp(min=0)[:, shared:],
            past_key_values=own,
            use_cache=True,
        )
        made = [part for layer in own.made for part in layer]
        return (*self.outputs(output.last_hidden_state[:, -1]), *made)


class _NewTokens(DynamicCache):
    """Keys and values of the new tokens alone."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Tensor, Tensor]] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *place: Any, **more: Any
    ) -> tuple[Tensor, Tensor]:
        self.made.append((key_states, value_states))
        return key_states, value_states


class _Prefix:
    """Attention to a prefix that all texts share, without a copy of it for each.

    Attributes:
        past: Keys and values of each layer in turn, (2 layers, heads, n, d).
    """

    past: Tensor

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        scaling: float,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Return (B, L, H, d) values of new tokens; transformers calls this in each layer."""
        if more := [name for name in ("softcap", "s_aux") if options.get(name) is not None]:
            raise UnsupportedError(f"attention with {', '.join(more)} cannot be exported")
        place = 2 * int(module.layer_idx)  # type: ignore[arg-type]
        past_key, past_value = self.past[place], self.past[place + 1]
        batch, heads, length, _ = query.shape
        groups = key.shape[1]  # of heads that share a key

        def together(rows: Tensor) -> Tensor:  # those of a group
            return rows.reshape(batch, groups, heads // groups * length, rows.shape[-1])

        def apart(rows: Tensor) -> Tensor:
            return rows.reshape(batch, heads, length, rows.shape[-1])

        def times(rows: Tensor, shared: Tensor) -> Tensor:  # all texts in one product
            made = together(rows).transpose(0, 1).flatten(1, 2) @ shared
            return apart(made.unflatten(1, (batch, -1)).transpose(0, 1))

        before, own = times(query, past_key.mT), apart(together(query) @ key.mT)
        shares = (torch.cat([before, own], -1) * scaling + attention_mask).softmax(-1)
        shared = self.past.shape[-2]
        read = apart(together(shares[..., shared:]) @ value)
        return (times(shares[..., :shared], past_value) + read).transpose(1, 2), None


class _Terms(_Head):
    """Mixtures (B, V) of the rows of the text codebook."""

    def forward(self, mixtures: Tensor) -> tuple[Tensor, ...]:
        return self.outputs(mixtures @ self.rows())


class _Image(nn.Module):
    """States of the patches of (B, side, side, 3) uint8 images."""

    channel_mean: Tensor
    channel_std: Tensor

    def __init__(self, model: TorchLexVLA) -> None:
        super().__init__()
        self.model = model
        for name in ("mean", "std"):
            values = torch.tensor(getattr(model.config, f"image_{name}")).view(1, 3, 1, 1)
            # Not by its plain name, which the exporter gives to operations.
            self.register_buffer(f"channel_{name}", values, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        levels = pixels.permute(0, 3, 1, 2).float() / 255
        return self.model.patch_states((levels - self.channel_mean) / self.channel_std)


class _Pooled(nn.Module):
    """Dense vectors and codes of pooled states of images."""

    def __init__(self, model: TorchLexVLA) -> None:
        super().__init__()
        self.model = model

    def forward(self, states: Tensor) -> tuple[Tensor, ...]:
        return _dense_outputs(self.model, self.model.pooled(states), "image")


def _dense_outputs(model: TorchLexVLA, states: Tensor, kind: str) -> tuple[Tensor, ...]:
    head = getattr(model, f"{kind}_dense_head")
    if head is None:
        return ()
    dense = head(states)
    return (dense,) if model.codebook is None else (dense, model.codebook(dense))


def _traced(name: str, model: TorchLexVLA) -> Any:
    batch, length, shared = (torch.export.Dim(each) for each in ("batch", "length", "shared"))
    config = model.config
    if name == "image.onnx":
        side = config.image_side
        pixels = torch.zeros(2, side, side, 3, dtype=torch.uint8)
        return _trace(_Image(model), (pixels,), ["pixels"], ["states"], ({0: batch},))
    outputs = ["logits", *_dense_names(model)]
    if name == "terms.onnx":
        mixtures = torch.zeros(2, len(model.vocabulary))
        return _trace(_Terms(model), (mixtures,), ["mixtures"], outputs, ({0: batch},))
    ids = torch.ones(2, 7, dtype=torch.long)
    decoder = model.text_tower.language_model.get_decoder()
    layers = decoder(input_ids=ids[:1, :5], use_cache=True).past_key_values.layers
    past = torch.cat([part for layer in layers for part in (layer.keys, layer.values)])
    tokens = {0: batch, 1: length}
    return _trace(
        _Text(model),
        (ids, torch.ones_like(ids), past),
        ["ids", "mask", "past"],
        [*outputs, *(f"made{place}" for place in range(2 * len(layers)))],
        (tokens, tokens, {2: shared}),
    )


def _dense_names(model: TorchLexVLA) -> list[str]:
    return ["dense", "codes"][: (model.text_dense_head is not None) + (model.codebook is not None)]


def _trace(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    shapes: tuple[dict[int, Any], ...],
) -> Any:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own packages
        # First, because the second would fix sizes that it cannot keep open.
        traced = torch.export.export(module.eval(), arguments, dynamic_shapes=shapes, strict=False)
        program: Any = torch.onnx.export(
            traced,
            dynamo=True,
            optimize=False,  # it would fold weights into new ones, which no file has
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            verbose=False,
        )
    optimizer = import_module("onnxscript.optimizer")
    # Only what follows from numbers of the program: ONNX Runtime does the rest.
    optimizer.fold_constants(
        program.model,
        input_size_limit=64,
        output_size_limit=8192,
        should_fold=lambda node: False if node.op_type == "Transpose" else None,  # of weights
    )
    optimizer.remove_unused_nodes(program.model)
    model = program.model_proto
    _divide_by_roots(model.graph)
    del model.graph.value_info[:]
    for node in model.graph.node:  # where in the source each comes from: most of the file
        del node.metadata_props[:]
        node.doc_string = ""
    return model


def _divide_by_roots(graph: Any) -> None:
    """Divide by roots, not multiply by their reciprocals: so ONNX Runtime recognises norms."""
    inverse = [node for node in graph.node if node.op_type == "Reciprocal"]
    roots = {node.output[0]: node.input[0] for node in inverse}
    for node in graph.node:
        if node.op_type == "Mul" and node.input[1] in roots:
            node.op_type, node.input[1] = "Div", roots[node.input[1]]
    read = {name for node in graph.node for name in node.input}
    for node in inverse:
        if node.output[0] not in read:
            graph.node.remove(node)


def _patches_graph(onnx: ModuleType, model: TorchLexVLA) -> Any:
    """Build the lexical head of images: a loop over items, whose patch logits alone are held."""
    make, sizes = onnx.helper, (len(model.vocabulary), model.config.lexical_width)
    codebook = "model.image_codebook"
    nodes: list[Any] = []
    weights: list[Any] = []

    def constant(name: str, values: list[int]) -> str:
        weights.append(make.make_tensor(name, _TYPES["I64"], [len(values)], values))
        return name

    def node(kind: str, inputs: list[str], output: str, **more: Any) -> None:
        nodes.append(make.make_node(kind, inputs, [output], **more))

    if model.image_tower.memory is None:
        weights.append(_empty(onnx, codebook, "F32", list(sizes)))
        node("Transpose", [codebook], "words", perm=[1, 0])
        body = [make.make_node("MatMul", ["state", "words"], ["scores"])]
    else:
        # Stored without its zeros. Of its concepts, most are shown nowhere in an image.
        counts = [int(n) for n in (model.image_codebook != 0).sum(1)]
        rows = [row for row, count in enumerate(counts) for _ in range(count)]
        constant("rows", rows)
        weights.append(_empty(onnx, f"{codebook}.columns", "I32", [len(rows)]))
        weights.append(_empty(onnx, f"{codebook}.values", "F32", [len(rows)]))
        constant("last", [1])
        node("Cast", [f"{codebook}.columns"], "columns", to=_TYPES["I64"])
        node("Unsqueeze", ["columns", "last"], "column")
        node("Unsqueeze", ["rows", "last"], "row")
        node("Concat", ["column", "row"], "cells", axis=1)
        constant("shape", [sizes[1], sizes[0]])
        node("ConstantOfShape", ["shape"], "zeros")
        node("ScatterND", ["zeros", "cells", f"{codebook}.values"], "words")
        constant("first", [0])
        body = [
            make.make_node("ReduceMax", ["state", "first"], ["largest"], keepdims=0),
            make.make_node("NonZero", ["largest"], ["shown"]),
            make.make_node("Squeeze", ["shown", "first"], ["concepts"]),
            make.make_node("Gather", ["state", "concepts"], ["own"], axis=1),
            make.make_node("Gather", ["words", "concepts"], ["rows_shown"], axis=0),
            make.make_node("MatMul", ["own", "rows_shown"], ["scores"]),
        ]
    constant("patch_axis", [0])
    body += [
        make.make_node("ReduceMax", ["scores", "patch_axis"], ["best"], keepdims=0),
        make.make_node("ArgMax", ["scores"], ["where"], axis=0, keepdims=0),
    ]
    tensor = make.make_tensor_value_info
    loop = make.make_graph(
        body,
        "item",
        [tensor("state", _FLOAT, ["patches", sizes[1]])],
        [tensor("best", _FLOAT, [sizes[0]]), tensor("where", _TYPES["I64"], [sizes[0]])],
    )
    nodes.append(
        make.make_node("Scan", ["states"], ["logits", "places"], body=loop, num_scan_inputs=1)
    )
    outputs = [
        tensor("logits", _FLOAT, ["batch", sizes[0]]),
        tensor("places", _TYPES["I64"], ["batch", sizes[0]]),
    ]
    graph = make.make_graph(
        nodes,
        "patches",
        [tensor("states", _FLOAT, ["batch", "patches", sizes[1]])],
        outputs,
        weights,
    )
    if names := _dense_names(model):
        batch, patches = torch.export.Dim("batch"), torch.export.Dim("patches")
        states = torch.zeros(2, 3, sizes[1])
        shapes = ({0: batch, 1: patches},)
        dense = _trace(_Pooled(model), (states,), ["states"], names, shapes).graph
        graph.node.extend(dense.node)
        graph.initializer.extend(dense.initializer)
        graph.output.extend(dense.output)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", OPSET)], ir_version=10)


def _empty(onnx: ModuleType, name: str, kind: str, shape: list[int]) -> Any:
    """Return an initialiser whose values are to come from a file."""
    return onnx.TensorProto(name=name, data_type=_TYPES[kind], dims=shape)


def _places(folder: Path, has_map: bool) -> dict[str, tuple[str, dict[str, Any], int]]:
    """Return file, header entry and offset of each weight, by its name in the model."""
    places = {}
    for file, prefix in (
        (model_folder.WEIGHTS_FILE, ""),
        (f"{model_folder.TEXT_MODEL}/{model_folder.WEIGHTS_FILE}", saving.TOWERS[0]),
        # transformers saves timm's networks under their own names.
        (
            f"{model_folder.VISION_MODEL}/{model_folder.WEIGHTS_FILE}",
            saving.TOWERS[1] + ("timm_model." if has_map else ""),
        ),
    ):
        with (folder / file).open("rb") as weights:
            length = int.from_bytes(weights.read(8), "little")
            header = json.loads(weights.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                places[prefix + name] = (file, entry, 8 + length)
    return places


def _read_weights_from_files(onnx: ModuleType, graph: Any, places: dict[str, Any]) -> None:
    """Replace the model's weights in a graph by references to where the files have them."""
    casts = []
    for tensor in graph.graph.initializer:
        if (place := places.get(tensor.name.removeprefix("model."))) is None:
            continue
        file, entry, start = place
        if list(tensor.dims) != entry["shape"]:
            raise UnsupportedError(f"{tensor.name}: its shape differs from that in {file}")
        first, end = entry["data_offsets"]
        wanted, stored = tensor.data_type, _TYPES[entry["dtype"]]
        tensor.ClearField("raw_data")
        tensor.ClearField("external_data")
        facts = {"location": file, "offset": start + first, "length": end - first}
        for key, value in facts.items():
            tensor.external_data.add(key=key, value=str(value))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        if stored != wanted:
            name, tensor.name, tensor.data_type = tensor.name, f"{tensor.name}.stored", stored
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=wanted))
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
