# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# transformers, tokenizers and datasets annotate loosely.
"""Models of a fraction of a million parameters, with random weights and nothing to download."""

import random
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

PAD, EOS = 0, 1
"""The first two tokens of `tokenizer`."""
_SPECIAL = ["<think>", "</think>", "<answer>", "</answer>", "<|im_start|>", "<|im_end|>"]
_VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_CHAT = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n"
    "{% if m['content'] is string %}{{m['content']}}{% else %}{% for c in m['content'] %}"
    "{% if c['type']=='image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{c['text']}}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(*, vision: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte, and the special tokens."""
    special = _SPECIAL + (_VISION if vision else [])
    words = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *special]
    core = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        additional_special_tokens=special,
    )
    fast.chat_template = _CHAT
    return fast


def text_model(words: PreTrainedTokenizerFast, *, heads: int = 4) -> Qwen2ForCausalLM:
    """A Qwen2 whose weights are scaled up, so that prompts differ in their entropies."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(words),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=heads,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            pad_token_id=PAD,
            eos_token_id=EOS,
            bos_token_id=None,
        )
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(20.0)
        model.model.embed_tokens.weight.mul_(20.0)
    _ends(model)
    return model


def sums(rows: int = 32, *, conversational: bool = False) -> Dataset:
    """Sums of two digits, with the columns ``prompt``, ``ground_truth`` and ``task``."""
    digits = random.Random(0)
    out: list[dict[str, Any]] = []
    for i in range(rows):
        a, b = digits.randint(0, 9), digits.randint(0, 9)
        question = f"{a}+{b}="
        prompt = [{"role": "user", "content": question}] if conversational else question
        out.append({"prompt": prompt, "ground_truth": str(a + b), "task": ("even", "odd")[i % 2]})
    return Dataset.from_list(out)


def checksum(*, completions: list[Any], **_columns: Any) -> list[float]:
    """Reward a checksum of the text: deterministic, and different within a group."""
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    return [sum(map(ord, text)) % 7 / 7 for text in texts]


def image_processor() -> Any:
    """A Qwen2-VL processor: a byte tokenizer, 2 x 2 to 4 x 4 patches of 14 pixels."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    words = tokenizer(vision=True)
    pixels: dict[str, Any] = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=14, merge_size=2, temporal_patch_size=2, **pixels
        ),
        tokenizer=words,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=_CHAT,
    )


def image_model(processor: Any) -> Any:
    """A Qwen2-VL that never invents an image: its vision tokens are not sampled."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    words = processor.tokenizer
    start, end, image, video = words.convert_tokens_to_ids(_VISION)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [2, 3, 3],
                "rope_theta": 10000.0,
            },
            "pad_token_id": PAD,
            "eos_token_id": EOS,
            "bos_token_id": None,
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": 1,
            "embed_dim": 64,
            "hidden_size": 64,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(20.0)
    _ends(model)
    model.generation_config.suppress_tokens = [start, end, image, video]
    return model


def pictures(rows: int = 8) -> Dataset:
    """Questions with one picture of noise each."""
    noise = np.random.default_rng(0)
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"{i}?"}],
                "image": Image.fromarray(noise.integers(0, 255, (56, 56, 3), dtype=np.uint8)),
                "task": "noise",
            }
            for i in range(rows)
        ]
    )


def _ends(model: Any) -> None:
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = PAD
