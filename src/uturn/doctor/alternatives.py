"""What a network may expect of its input instead of what is stated: the usual mistakes undone."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any

from uturn.types import LEVELS
from uturn.victims.preprocessing import Preprocessing

Three = tuple[float, float, float]

REMEDY = (
    "state what the network was trained with, as mean=, std=, order=, size=, fit=, crop_from= and "
    "interpolation= behind the victim's name, or as Preprocessing in Python"
)


def alternatives(stated: Preprocessing) -> dict[str, Preprocessing]:
    """The usual mistakes undone: what a network may expect where ``stated`` is wrong."""

    def like(mean: Three, std: Three, order: Any = stated.order) -> Preprocessing:
        return replace(stated, mean=mean, std=std, order=order)

    m, s = stated.mean, stated.std
    once: Any = tuple(a / (1 + sqrt(b)) for a, b in zip(m, s, strict=True))
    twice: Any = tuple(a * (1 + b) for a, b in zip(m, s, strict=True))  # ((x − m)/s − m)/s
    root: Any = tuple(map(sqrt, s))
    square: Any = tuple(b * b for b in s)
    zero, level = (0.0, 0.0, 0.0), (1 / LEVELS, 1 / LEVELS, 1 / LEVELS)
    usual = Preprocessing(size=stated.size)
    other = "BGR" if stated.order == "RGB" else "RGB"
    caffe = (103.939 / LEVELS, 116.779 / LEVELS, 123.68 / LEVELS)
    found = {
        f"channels in the order {other}": like(m, s, other),
        **({"mean and std swapped": like(s, m)} if min(m) > 0 else {}),
        "ImageNet's mean and std": like(usual.mean, usual.std),
        "values of 0 … 1, not normalised": like(zero, (1.0, 1.0, 1.0)),
        "values of -1 … 1": like((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        "values of 0 … 255": like(zero, level),
        "BGR of 0 … 255 less the mean (Caffe)": like(caffe, level, "BGR"),
        "normalised once, not twice": like(once, root),
        "normalised twice": like(twice, square),
    }
    first = dict[Preprocessing, str]()
    for name, each in found.items():
        first.setdefault(each, name)
    return {name: each for each, name in first.items() if each != stated}


def options(preprocessing: Preprocessing) -> str:
    """Its normalisation as a victim's spec takes it."""
    mean, std = ("+".join(f"{x:.4g}" for x in of) for of in (preprocessing.mean, preprocessing.std))
    return f"mean={mean},std={std},order={preprocessing.order}"
