"""``hf:FOLDER`` or ``hf:ID``: image towers of Hugging Face's transformers, by safetensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from PIL import Image
from torch import Tensor, nn

from uturn.errors import ArgumentError, CheckpointError, SpecError
from uturn.victims.adapters import fingerprint, lifting, require
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.victim import Victim

_PROJECTED = {"clip", "clip_vision_model"}
"""Their feature is the one that is compared with texts: ``image_embeds``."""
_SIGLIP = {"siglip", "siglip_vision_model"}
"""Their feature is that of the attention pooling, which is compared with texts."""
_CLASS_TOKEN = {"vit", "deit", "vit_msn"}
"""Their feature is the normalised class token: the pooler above it is seldom trained."""
_HEADED = _CLASS_TOKEN | {"convnext", "convnextv2", "regnet", "resnet", "swin", "swinv2"}
"""Where the classifier of ``…ForImageClassification`` takes just our feature."""

_FILES = ["config.json", "*processor_config.json", "model*.safetensors*"]


def build(model: str, download: bool = False) -> Victim:
    """hf:FOLDER or hf:ID,download=yes: CLIP, SigLIP, DINOv2, ViT, ConvNeXt, …; safetensors only.

    A folder holds config.json, model.safetensors and preprocessor_config.json. An id of the Hub
    is looked up in its local cache, and with ``download=yes`` fetched. The feature is CLIP's
    projected embedding, the class token of ViTs, and the ``pooler_output`` of others (DINOv2: the
    normalised class token). Nobody's code but transformers' own runs.

    Raises:
        SpecError: something is missing, or the model or its preprocessing cannot be followed.
        CheckpointError: weights are damaged, missing from the file, or of another shape.
    """
    transformers = require("transformers", "zoo")
    require("transformers.image_processing_utils", "zoo")  # it imports torchvision where there is
    name = f"hf:{model}"
    folder = _folder(model, name, download)
    with _quiet(transformers):
        tower, read, head = _tower(transformers, folder, name)
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(
                folder, backend="pil", local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever its classes make of a strange configuration
            raise SpecError(
                f"{name} has an image processor that cannot be used here: {error}"
            ) from error

    def own_transform(picture: Image.Image) -> Tensor:
        found: Tensor = processor(picture, return_tensors="pt")["pixel_values"][0]
        return found

    network = Tower(tower, name, read)
    return lifting.proven(
        Victim(
            name=name,
            network=network,
            preprocessing=_lifted(processor, name),
            classifier=head,
            own_transform=own_transform,
            fingerprint=fingerprint(network),
        )
    )


@final
class Tower(nn.Module):
    """An image tower of transformers: normalised pictures → the feature ``read`` names.

    ``read`` is a field of the model's output, or ``class_token``.
    """

    def __init__(self, tower: nn.Module, name: str, read: str) -> None:
        super().__init__()
        self.tower, self.name, self.read = tower, name, read

    def forward(self, x: Tensor) -> Tensor:
        output: Any = self.tower(pixel_values=x)
        if self.read == "class_token":
            return output.last_hidden_state[:, 0]  # type: ignore[no-any-return]
        found = output.get(self.read)
        if found is None:
            raise ArgumentError(
                f"{self.name} has no {self.read}, a feature of the whole picture; choose a model "
                "that has, or write package.module:function, which says what its feature is"
            )
        return found.flatten(1)  # type: ignore[no-any-return]  # convolutional: (B, D, 1, 1)


def _folder(model: str, name: str, download: bool) -> Path:
    """The folder with a model's files, complete."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        hub = require("huggingface_hub", "zoo")
        try:
            folder = Path(
                hub.snapshot_download(model, allow_patterns=_FILES, local_files_only=not download)
            )
        except Exception as error:  # the network's, the Hub's; an id that cannot be one
            first = str(error).strip().partition("\n")[0]
            raise SpecError(
                f"there is no folder {model}, and the Hub's cache here has no such model "
                f"({first}); write hf:FOLDER, or {name},download=yes where there is a connection"
            ) from error
    for pattern in _FILES:
        if not any(folder.glob(pattern)):
            raise SpecError(
                f"{folder} lacks {pattern}; a model of transformers is a folder with config.json, "
                "preprocessor_config.json and model.safetensors (save_pretrained writes them; "
                "weights as .bin are not read, for they can carry code)"
            )
    return folder


def _tower(transformers: Any, folder: Path, name: str) -> tuple[nn.Module, str, nn.Module | None]:
    """The model, the name of its feature, and its classifier if that takes this feature."""
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever its classes make of a strange configuration
        raise SpecError(f"{name} is of a kind that transformers does not know: {error}") from error
    kind = config.model_type
    if getattr(config, "quantization_config", None):
        raise SpecError(f"{name} is quantised; use the original weights")
    if kind in _PROJECTED:
        vision = getattr(config, "vision_config", config)
        vision.projection_dim = config.projection_dim  # the vision part's own is often unset
        found = _loaded(transformers.CLIPVisionModelWithProjection, folder, name, config=vision)
        return found, "image_embeds", None
    if kind in _SIGLIP:
        return _loaded(transformers.SiglipVisionModel, folder, name), "pooler_output", None
    if hasattr(config, "vision_config"):
        known = ", ".join(sorted(_PROJECTED | _SIGLIP))
        raise SpecError(
            f"{name} is a {kind}, of whose towers uturn knows none; known with texts: {known}; "
            "write package.module:function, which returns its image tower"
        )
    read = "class_token" if kind in _CLASS_TOKEN else "pooler_output"
    architecture = (config.architectures or [""])[0]
    if kind in _HEADED and architecture.endswith("ForImageClassification"):
        whole: Any = _loaded(transformers.AutoModelForImageClassification, folder, name)
        return whole.base_model, read, whole.classifier
    options = {"add_pooling_layer": False} if kind in _CLASS_TOKEN else {}
    return _loaded(transformers.AutoModel, folder, name, **options), read, None


def _loaded(architecture: Any, folder: Path, name: str, **options: Any) -> nn.Module:
    """A model with all its weights from the folder's safetensors; those of others are left."""
    try:
        model, found = architecture.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="eager",  # a configuration may name kernels from the Hub
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are counted below
            **options,
        )
    except Exception as error:  # a damaged file can make it raise anything
        raise CheckpointError(
            f"transformers cannot load {folder} ({error}); download or copy it again"
        ) from error
    # transformers draws what it misses at random.
    odd = [str(key) for kind in ("missing_keys", "mismatched_keys") for key in sorted(found[kind])]
    if odd:
        raise CheckpointError(
            f"{folder} lacks {len(odd)} weights of {type(model).__name__}, or has them in another "
            f"shape: {', '.join(odd[:3])}; take the folder that its authors published"
        )
    loaded: nn.Module = model
    return loaded


def _lifted(processor: Any, name: str) -> Preprocessing:
    """What an image processor does, by its configuration; `lifting.proven` tests it."""

    def given(key: str) -> Any:
        return getattr(processor, key, None)

    size = {key: value for key, value in dict(given("size") or {}).items() if value is not None}
    crop = dict(given("crop_size") or {}) if given("do_center_crop") else {}
    shorter = size.get("shortest_edge")
    stretched: tuple[int, int] | None = None
    if "height" in size:
        stretched = (size["height"], size["width"])
    elif shorter and given("crop_pct"):  # ConvNeXt
        if shorter < 384:
            crop, shorter = {"height": shorter, "width": shorter}, int(shorter / given("crop_pct"))
        else:
            stretched = (shorter, shorter)
    if stretched and not crop:
        final_size, crop_from = stretched, None
    elif crop and shorter:
        final_size, crop_from = (crop["height"], crop["width"]), shorter
    else:
        raise SpecError(
            f"{name} resizes to {size} and crops to {crop}, which uturn cannot follow; give its "
            "processor another size, or write package.module:function"
        )
    resample = {2: "bilinear", 3: "bicubic"}.get(int(given("resample") or 0))
    return lifting.preprocessing(
        name,
        size=final_size,
        crop_from=crop_from,
        interpolation=resample,
        mean=given("image_mean") if given("do_normalize") else (0, 0, 0),
        std=given("image_std") if given("do_normalize") else (1, 1, 1),
        centre="floor",
    )


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and no reports on weights that were left out on purpose."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
