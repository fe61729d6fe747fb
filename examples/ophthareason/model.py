# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# (the annotations of transformers' configurations and tokenizers are partial)
"""The miniature: Qwen2.5-VL's architecture with two million random parameters, made on the spot.

Nothing is downloaded. The tokenizer is byte-level, so that any text can be read. The authors' fixed
prompts, the tags and the terms of the tasks are single tokens of it: prompts stay word for word,
and a prompt still has fewer than a hundred tokens. What stands for pictures, turns and prompts must
never be sampled (an image token that a policy writes breaks the next forward pass):
`never_sampled` names them, training presses their probability below e⁻²⁰, and the generation
configuration bars them besides.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from examples.ophthareason.phantom import GRADES
from examples.ophthareason.prompts import SYSTEM_PROMPT, TEMPLATES
from examples.ophthareason.settings import ModelSettings
from examples.ophthareason.tasks import DIAGNOSES, FINDINGS, HISTORIES, NOTHING

__all__ = ["build_model", "build_processor", "fit_projector", "load", "never_sampled", "save"]

_END, _TURN = "<|im_end|>", "<|im_start|>"
_PAD, _IMAGE, _VIDEO = "<|endoftext|>", "<|image_pad|>", "<|video_pad|>"
_VISION_START, _VISION_END = "<|vision_start|>", "<|vision_end|>"
_SPECIAL = (_PAD, _TURN, _END, _VISION_START, _VISION_END, _IMAGE, _VIDEO)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_TERMS = (*FINDINGS, *GRADES, *DIAGNOSES, *HISTORIES, NOTHING)
_PROMPTS = (SYSTEM_PROMPT, *(text.split("{Question}")[1] for text in TEMPLATES.values()))

_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' or 'image' in c %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_processor(settings: ModelSettings, texts: Iterable[str]) -> Qwen2_5_VLProcessor:
    """Train the tokenizer on some texts and put the image processor beside it.

    Args:
        settings: Sizes.
        texts: What the byte-pair merges are learnt from.

    Returns:
        The processor; its chat template renders strings and lists of parts.
    """
    fixed = [*_PROMPTS, *_TAGS, *_TERMS, *(f" {term}" for term in _TERMS)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=settings.vocabulary - len(fixed) - len(_SPECIAL),
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in fixed])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        pad_token=_PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    pixels = settings.side**2
    patches = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    limits = {"min_pixels": 28 * 28 * 4, "max_pixels": pixels}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**limits, **patches),
        tokenizer=fast,
        video_processor=Qwen2VLVideoProcessor(**limits, **patches),
        chat_template=_CHAT_TEMPLATE,
    )


def never_sampled(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids that a policy must not write: special tokens but the end, and prompts."""
    texts = [text for text in (*_SPECIAL, *_PROMPTS) if text != _END]
    return sorted(set(tokenizer.convert_tokens_to_ids(texts)))


def build_model(
    settings: ModelSettings, processor: Qwen2_5_VLProcessor, *, seed: int
) -> Qwen2_5_VLForConditionalGeneration:
    """Make the model with random weights.

    Args:
        settings: Sizes.
        processor: Whose tokenizer decides the vocabulary: no id without a token, none beyond.
        seed: Of the weights.

    Returns:
        The model in float32.
    """
    tokenizer = processor.tokenizer
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in _SPECIAL}
    half = settings.hidden // settings.heads // 2
    third = half // 3
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": settings.hidden,
            "intermediate_size": settings.intermediate,
            "num_hidden_layers": settings.layers,
            "num_attention_heads": settings.heads,
            "num_key_value_heads": settings.heads,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [half - 2 * third, third, third],
            },
            "bos_token_id": None,
            "eos_token_id": ids[_END],
            "pad_token_id": ids[_PAD],
        },
        vision_config={
            "depth": settings.vision_depth,
            "hidden_size": settings.vision_hidden,
            "intermediate_size": 2 * settings.vision_hidden,
            "num_heads": settings.vision_heads,
            "in_channels": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "out_hidden_size": settings.hidden,
            "fullatt_block_indexes": [settings.vision_depth - 1],
        },
        image_token_id=ids[_IMAGE],
        video_token_id=ids[_VIDEO],
        vision_start_token_id=ids[_VISION_START],
        vision_end_token_id=ids[_VISION_END],
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():  # a good start for copying a token from the prompt: options' letters
        model.lm_head.weight.copy_(model.get_input_embeddings().weight)
    model.generation_config = GenerationConfig(
        eos_token_id=ids[_END],
        pad_token_id=ids[_PAD],
        suppress_tokens=never_sampled(tokenizer),
        do_sample=False,
    )
    return model


@torch.no_grad()
def fit_projector(
    model: Qwen2_5_VLForConditionalGeneration, seen: torch.Tensor, words: torch.Tensor
) -> float:
    """Give the projector the least-squares map from what the encoder says to what words say.

    A pretrained encoder knows nothing of the language model's space, not even its scale; from there
    the captions of stage 1 would need many more steps.

    Args:
        model: The model; the last layer of its projector is changed in place.
        seen: What the projector now says of some pictures, shape ``(tokens, width)``.
        words: What words in the picture's place would say, of the same shape.

    Returns:
        The share of the words' variance that the map leaves unexplained.
    """
    ones = torch.ones(len(seen), 1, dtype=torch.float64)
    system = torch.cat([seen.double(), ones], dim=1)
    ridge = 1e-3 * len(seen) * torch.eye(system.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(system.T @ system + ridge, system.T @ words.double())
    turn, shift = solved[:-1], solved[-1]
    last: Any = list(model.model.visual.merger.mlp.children())[-1]
    weight, bias = last.weight.double(), last.bias.double()
    last.weight.copy_((turn.T @ weight).float())
    last.bias.copy_((bias @ turn + shift).float())
    rest = words.double() - system @ solved
    return float(rest.var() / words.double().var())


def save(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, folder: Path
) -> None:
    """Write model and processor into one folder, the weights as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def load(folder: Path) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Read both back, the weights in float32 whatever they were stored in."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    return model, Qwen2_5_VLProcessor.from_pretrained(folder)
