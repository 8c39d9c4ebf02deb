"""What a model does, by its configuration, and transformers' class for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenllm import captions, classes, pairs, script, tiles, vlm
from greenllm.blocks import paired, sees_and_reads
from greenllm.errors import GreenError
from greenllm.merge import in_order

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GENERATION, FEATURES, CLASSIFICATION = "text-generation", "feature-extraction", classes.TASK
IMAGE_CLASSES, IMAGE_FEATURES = IMAGES = ("image-classification", "image-feature-extraction")
SPEECH = script.TASK
PAIRS = pairs.TASK  # images and texts side by side: CLIP, SigLIP and their like
CAPTIONS = captions.TASK  # images to text: an encoder sees, a decoder beside it writes
VLM = vlm.TASK  # what answers questions about an image: LLaVA, SmolVLM
SEEING = (*IMAGES, PAIRS, CAPTIONS, VLM)
WRITING = (SPEECH, CAPTIONS)  # two graphs, of which the second writes about what the first was given
_TOWERS = ("clip_vision_model", "siglip_vision_model")
INPUTS = dict.fromkeys(SEEING, "pixel_values")  # speech: the model's own; text alone: "input_ids"


def task_of(config: PretrainedConfig) -> str:
    """What a model does, by its name on the hub.

    Raises:
        GreenError: an architecture that is not supported.
    """
    from transformers.models.auto import modeling_auto as auto

    name = (getattr(config, "architectures", None) or [""])[0]
    heads = {
        GENERATION: auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        CLASSIFICATION: auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        IMAGE_CLASSES: auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        SPEECH: auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    }
    if captions.writes(config):
        return CAPTIONS
    for task, known in heads.items():
        if any(name == k or (isinstance(k, tuple) and name in k) for k in known.values()):
            return task
    if name in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values():
        if config.model_type in vlm.KINDS:
            return VLM
        raise GreenError(
            f"The architecture {name!r} is not supported yet.",
            f"Of models that answer about images these are: {', '.join(vlm.KINDS)}.",
        )
    if config.model_type in auto.MODEL_MAPPING_NAMES and not getattr(config, "is_encoder_decoder", False):
        known = class_of(FEATURES, config)
        if not sees_and_reads(known):
            return IMAGE_FEATURES if known.main_input_name == "pixel_values" else FEATURES
        if paired(known) and name == known.__name__:  # and not what writes about an image
            return PAIRS
    raise GreenError(f"The architecture {name or config.model_type!r} is not supported yet.")


def settle_sight(config: Any, path: Path) -> None:
    """Have the configuration of a model that answers about images be that of what is read of its vision tower.

    Raises:
        GreenError: its tower fits ill, or is none that is known.
    """
    if config.model_type in tiles.KINDS:
        _check_square(config, path)
    else:
        _leave_out_unread(config, path)


def _check_square(config: Any, path: Path) -> None:
    """Refuse tiles whose patches are not whole, or are not where transformers looks them up."""
    tower, scale = config.vision_config, config.scale_factor
    size, patch = tower.image_size, tower.patch_size
    if not isinstance(size, int) or not isinstance(patch, int) or size % patch or size // patch % scale:
        raise GreenError(
            f"{path}: images of {size} pixels in patches of {patch}, of which {scale} x {scale} become a vector: only "
            "squares that these fill are taken.",
            "image_size and patch_size of vision_config, and scale_factor, must be the model's.",
        )
    if not in_order(size // patch):
        raise GreenError(
            f"{path}: with {size // patch} patches a row transformers gives some the place of their neighbour, by "
            "rounding; such vision towers are not supported.",
            "Those of SmolVLM and Idefics3 on the hub have 26, 27 or 32.",
        )


def _leave_out_unread(config: Any, path: Path) -> None:
    """Have a vision tower end where the model reads its states: what comes after has no part in any answer.

    Raises:
        GreenError: it reads other states than those of one block, or its tower is none that is known.
    """
    tower, layer = config.vision_config, config.vision_feature_layer
    blocks = int(getattr(tower, "num_hidden_layers", 0))
    if tower.model_type not in _TOWERS:
        raise GreenError(f"{path}: a vision tower of the kind {tower.model_type} is not supported yet.",
                         f"These are: {', '.join(_TOWERS)}.")  # fmt: skip
    last = layer % (blocks + 1) if isinstance(layer, int) and -blocks <= layer <= blocks else 0
    if not last:
        raise GreenError(
            f"{path}: vision_feature_layer is {layer} with {blocks} blocks; states of one block are read here."
        )
    tower.num_hidden_layers, config.vision_feature_layer = last, -1
    if hasattr(tower, "vision_use_head"):
        tower.vision_use_head = False


def auto_class(task: str) -> Any:
    """Transformers' class that finds that of a model for a task."""
    import transformers as t

    return {
        GENERATION: t.AutoModelForCausalLM, CLASSIFICATION: t.AutoModelForSequenceClassification,
        IMAGE_CLASSES: t.AutoModelForImageClassification, SPEECH: t.AutoModelForSpeechSeq2Seq,
        CAPTIONS: t.AutoModelForImageTextToText, VLM: t.AutoModelForImageTextToText,
    }.get(task, t.AutoModel)  # fmt: skip


def build(task: str, config: PretrainedConfig) -> Any:
    """A model in float32 with weights of no meaning; ``config`` becomes its own.

    Raises:
        ValueError, KeyError, AttributeError, TypeError: the configuration makes no sense.
    """
    import torch

    if captions.is_blip(config):
        from greenllm.blip import Captioner

        return Captioner._from_config(config, dtype=torch.float32)  # noqa: SLF001 - what each from_config calls
    return auto_class(task).from_config(config, dtype=torch.float32)


def class_of(task: str, config: PretrainedConfig) -> Any:
    """The class that transformers has for a model, or the first of several that are alike but for their heads."""
    found = auto_class(task)._model_mapping[type(config)]  # noqa: SLF001
    return found[0] if isinstance(found, tuple) else found
