"""torchvision's compiled operators, declared but not defined.

Its wheel is built for CUDA, and its import fails on a PyTorch without CUDA unless these names
exist. No network here calls them.
"""

from __future__ import annotations

import contextlib

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor x, Tensor rois, float scale, SymInt h, SymInt w, int ratio, bool aligned)"
    " -> Tensor",
    "_roi_align_backward(Tensor g, Tensor rois, float scale, SymInt h, SymInt w, SymInt b,"
    " SymInt c, SymInt y, SymInt x, int ratio, bool aligned) -> Tensor",
    "roi_pool(Tensor x, Tensor rois, float scale, SymInt h, SymInt w) -> (Tensor, Tensor)",
    "_roi_pool_backward(Tensor g, Tensor rois, Tensor argmax, float scale, SymInt h, SymInt w,"
    " SymInt b, SymInt c, SymInt y, SymInt x) -> Tensor",
    "ps_roi_align(Tensor x, Tensor rois, float scale, SymInt h, SymInt w, int ratio)"
    " -> (Tensor, Tensor)",
    "_ps_roi_align_backward(Tensor g, Tensor rois, Tensor map, float scale, SymInt h, SymInt w,"
    " int ratio, SymInt b, SymInt c, SymInt y, SymInt x) -> Tensor",
    "ps_roi_pool(Tensor x, Tensor rois, float scale, SymInt h, SymInt w) -> (Tensor, Tensor)",
    "_ps_roi_pool_backward(Tensor g, Tensor rois, Tensor map, float scale, SymInt h, SymInt w,"
    " SymInt b, SymInt c, SymInt y, SymInt x) -> Tensor",
    "deform_conv2d(Tensor x, Tensor w, Tensor o, Tensor m, Tensor b, SymInt sh, SymInt sw,"
    " SymInt ph, SymInt pw, SymInt dh, SymInt dw, SymInt g, SymInt og, bool use_mask) -> Tensor",
    "_deform_conv2d_backward(Tensor d, Tensor x, Tensor w, Tensor o, Tensor m, Tensor b, SymInt sh,"
    " SymInt sw, SymInt ph, SymInt pw, SymInt dh, SymInt dw, SymInt g, SymInt og, bool use_mask)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def declare() -> None:
    """Declare what is missing; where torchvision works, nothing is."""
    if torch.cuda.is_available():
        return  # a CUDA build defines them itself
    for operator in _OPERATORS:
        with contextlib.suppress(RuntimeError):
            _LIBRARY.define(operator)
