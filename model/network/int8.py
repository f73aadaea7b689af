"""An encoder in int8, which OpenVINO computes on a CPU. `model.quantize` makes them."""

from __future__ import annotations

import importlib.util
import threading

import numpy as np
import torch
from torch import Tensor

from conf.captioner import Preprocessing
from conf.errors import BundleError

_FIRST = threading.Lock()
_BATCH = 8  # images at a time; the intermediate results of more don't fit into a core's cache
_CPU = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}  # for what is not int8


def openvino_is_installed() -> bool:
    return importlib.util.find_spec("openvino") is not None


class Int8Encoder:
    """From uint8 pixels to annotation vectors. `streams` threads may call it at a time, each with `threads` CPUs.

    `network` and `weights` are a model in OpenVINO's IR format. Raises BundleError if it can't be loaded, or does not
    map pixels of this size to vectors with D = `channels`.
    """

    def __init__(
        self,
        network: bytes,
        weights: bytes,
        size: Preprocessing,
        channels: int,
        streams: int = 1,
        threads: int = 1,
    ) -> None:
        import openvino

        core = openvino.Core()
        try:
            model = core.read_model(network, weights)
            expected = openvino.PartialShape([-1, size.height, size.width, 3])
            shapes = [port.get_partial_shape() for port in (*model.inputs, *model.outputs)]
            fits = len(shapes) == 2 and shapes[0] == expected and shapes[1].rank.get_length() == 3
            if not fits or shapes[1][2].get_length() != channels:
                raise BundleError(
                    f"the int8 encoder has inputs and outputs of shape {', '.join(map(str, shapes)) or 'none'}; "
                    f"the bundle needs [?,{size.height},{size.width},3] and [?,?,{channels}]"
                )
            parallel = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams * threads}
            self._model = core.compile_model(model, "CPU", {**_CPU, **parallel})
        except RuntimeError as error:
            raise BundleError(
                f"the int8 encoder can't be loaded: {' '.join(str(error).split())[:300]}"
            ) from error
        self._requests = threading.local()  # a request serves one call at a time
        # OpenVINO's first conversion of a data type and its first inference fill tables while they hand Python's
        # global lock to other threads. If two threads are the first, they wait for each other forever.
        with _FIRST:
            openvino.Type.u8.to_dtype()
            self(torch.zeros(1, size.height, size.width, 3, dtype=torch.uint8))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (B, H, W, 3) uint8 RGB -> annotation vectors (B, L, D) float32."""
        if (request := getattr(self._requests, "own", None)) is None:
            request = self._requests.own = self._model.create_infer_request()
        parts = []
        array = np.ascontiguousarray(pixels.cpu().numpy())
        for start in range(0, len(array), _BATCH):
            request.infer([array[start : start + _BATCH]], share_inputs=True)
            parts.append(torch.from_numpy(request.get_output_tensor().data.copy()))
        return torch.cat(parts)
