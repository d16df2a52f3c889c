"""A classifier with the published model's inputs and outputs, whose scores can be computed."""

import hashlib
import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pixpod.outputs.nsfw_model import OnnxClassifier, load_onnx_classifier

STEEPNESS = 0.2
"""Of the score in levels by which red is above the mean of green and blue."""

MEAN_BGR = (104.0, 117.0, 123.0)
"""The preprocessing subtracts these."""


def planted_bytes() -> bytes:
    """An ONNX file: a batch of 224x224 BGR images in, the probabilities of safe and unsafe out."""
    weights = np.array([[0, -0.5], [0, -0.5], [0, 1]], np.float32) * STEEPNESS
    means = np.array(MEAN_BGR, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["input_0", "axes"], ["mean"], keepdims=0),
            helper.make_node("Add", ["mean", "means"], ["colours"]),
            helper.make_node("MatMul", ["colours", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "planted",
        [helper.make_tensor_value_info("input_0", TensorProto.FLOAT, ["batch", 224, 224, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
            numpy_helper.from_array(means, "means"),
            numpy_helper.from_array(weights, "weights"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model.SerializeToString()


def planted_classifier(folder) -> OnnxClassifier:
    """The planted file, run as the published one is."""
    path = folder / "planted.onnx"
    data = planted_bytes()
    path.write_bytes(data)
    return load_onnx_classifier(path, hashlib.sha256(data).hexdigest())


def score_of(red: float, green: float, blue: float) -> float:
    """The score of an image of one colour."""
    return 1 / (1 + math.exp(-STEEPNESS * (red - (green + blue) / 2)))
