"""What an exported model's folder holds besides the model's own files."""

from __future__ import annotations

__all__ = ["FORMAT_VERSION", "GRAPHS", "OLDEST_RUNTIME", "OPSET"]

FORMAT_VERSION = 2
OPSET = 18
OLDEST_RUNTIME = (1, 20)  # of onnxruntime
# The graphs, and the files of weights that each reads.
GRAPHS = {
    "text.onnx": ("model.safetensors", "text_model/model.safetensors"),
    "terms.onnx": ("model.safetensors", "text_model/model.safetensors"),
    "image.onnx": ("model.safetensors", "vision_model/model.safetensors"),
    "patches.onnx": ("model.safetensors",),
}
