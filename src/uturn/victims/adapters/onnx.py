"""``onnx:PATH``: a network behind onnxruntime, a black box: features come out, gradients do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from uturn.errors import ArgumentError, CheckpointError, SpecError
from uturn.victims.adapters import Bare, features_of, file_hash, require
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.victim import Victim

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def build(path: str) -> Victim | Bare:
    """onnx:PATH[,size=HxW]: a black box for scoring (eval, --query-dir) only.

    It takes normalised pictures ``(B, 3, H, W)`` and runs on the CPU. H and W, where the file
    fixes them, are the victim's size. If several tensors come out, one of them must be ``(B, D)``.

    Raises:
        CheckpointError: no such file, or onnxruntime cannot run it. SpecError: other inputs.
    """
    runtime = require("onnxruntime", "onnx")
    file, name = Path(path).expanduser(), f"onnx:{path}"
    mark = file_hash(file)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; they are raised as well
    try:
        session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's have no base of their own
        raise CheckpointError(f"onnxruntime cannot run {file}: {error}") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES:
        listed = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        raise SpecError(
            f"{name} takes {listed}; export it with one input of float pictures (B, 3, H, W)"
        )
    batch, channels, height, width = inputs[0].shape
    if isinstance(channels, int) and channels != 3:
        raise SpecError(
            f"{name} takes pictures of shape {inputs[0].shape}; export it with channels first, "
            "(B, 3, H, W)"
        )
    network = BlackBox(session, name, batch if isinstance(batch, int) else None)
    if not (isinstance(height, int) and isinstance(width, int)):
        return Bare(name, network, mark)
    preprocessing = Preprocessing(size=(height, width))
    return Victim(name=name, network=network, preprocessing=preprocessing, fingerprint=mark)


@final
class BlackBox(nn.Module):
    """A session of onnxruntime as a network: normalised pictures → features ``(B, D)``.

    Asked for a gradient it raises `ArgumentError`. ``batch`` is the number of pictures that the
    file fixes; others are run in such batches, the last one filled up.
    """

    def __init__(self, session: Any, name: str, batch: int | None) -> None:
        super().__init__()
        self.session, self.name, self.batch = session, name, batch
        (self.input,) = session.get_inputs()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = _NoWayBack.apply(x, self)  # type: ignore[no-untyped-call]
        return found

    def run(self, x: Tensor) -> Tensor:
        """Features of any number of pictures, on the device where these are."""
        batch = self.batch or max(1, len(x))
        found = []
        for pictures in torch.split(x.detach().cpu(), batch):
            filled = torch.cat([pictures, pictures.new_zeros(batch - len(pictures), *x.shape[1:])])
            found.append(self._once(filled)[: len(pictures)])
        return torch.cat(found).to(x.device)

    def _once(self, x: Tensor) -> Tensor:
        array = np.ascontiguousarray(x.numpy(), dtype=_TYPES[self.input.type])
        try:
            outputs = self.session.run(None, {self.input.name: array})
        except Exception as error:  # onnxruntime's have no base of their own
            raise ArgumentError(
                f"{self.name} refuses pictures of {tuple(x.shape)} ({error}); leave size=, crops= "
                f"and --scales out: the file asks for {self.input.shape}"
            ) from error
        return features_of([torch.from_numpy(each) for each in outputs], self.name).float()


class _NoWayBack(torch.autograd.Function):
    """Forward through onnxruntime; backward is an error that says why."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, box: BlackBox) -> Tensor:
        ctx.name = box.name
        return box.run(x)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise ArgumentError(
            f"{ctx.name} is a black box: ONNX files have no gradients, so no attack can climb "
            "them; attack another victim and score this one with uturn eval "
            "--query-dir"
        )
