"""Check the full recipe on a CPU without weights: the configuration, the data, the model class.

``python -m examples.ophthareason.full.dry_run [stage3_qwen|stage3_intern] [key=value …]``

What it proves: the configuration composes, verl accepts it, ours accepts it, the parquet files (if
they are there; two phantoms otherwise) have the columns and image marks that verl reads, and
verl picks a vision-language class that can be built. What it cannot: memory, speed, learning.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

__all__ = ["check_data", "check_model", "compose_recipe", "main", "published_config"]

HERE = Path(__file__).resolve().parent


def compose_recipe(name: str, overrides: list[str]) -> DictConfig:
    """Compose a recipe as ``python -m uadt.integrations.verl`` would.

    Args:
        name: ``stage3_qwen`` or ``stage3_intern``.
        overrides: Hydra overrides.

    Returns:
        verl's whole configuration, resolved.
    """
    os.environ.setdefault("PWD", str(Path.cwd()))
    with initialize_config_dir(str(HERE), version_base=None):
        config = compose(name, overrides=overrides)
    OmegaConf.resolve(config)
    return config


def check_settings(config: DictConfig) -> str:
    """Let verl and this library check the configuration.

    Returns:
        The shaping, with every number.
    """
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    from uadt.integrations.verl.settings import Settings, check_run

    settings = Settings.from_config(config)
    check_run(config, settings)
    validate_config(
        config=config,
        use_reference_policy=need_reference_policy(config),
        use_critic=need_critic(config),
    )
    omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    return repr(settings.shaping)


def published_config(name: str) -> Any:
    """Return a model's configuration: its own if the folder is there, else its published sizes.

    Args:
        name: ``stage3_qwen`` or ``stage3_intern``.

    Returns:
        A configuration of transformers.
    """
    from transformers import InternVLConfig, Qwen2_5_VLConfig

    if name == "stage3_intern":  # OpenGVLab/InternVL3-2B: Qwen2.5-1.5B and InternViT-300M
        text = {
            "model_type": "qwen2",
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vocab_size": 151674,
        }
        vision = {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": [448, 448],
            "patch_size": [14, 14],
        }
        config = InternVLConfig(text_config=text, vision_config=vision)
        config.architectures = ["InternVLForConditionalGeneration"]
        return config
    text = {  # Qwen/Qwen2.5-VL-3B-Instruct
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    }
    vision = {"depth": 32, "hidden_size": 1280, "out_hidden_size": 2048, "num_heads": 16}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    return config


def check_model(name: str, path: str) -> tuple[str, int]:
    """Build the model that verl would load, on the meta device: no memory, no weights.

    Args:
        name: The recipe.
        path: ``actor_rollout_ref.model.path``; read if it is a folder.

    Returns:
        The class and the number of parameters.
    """
    from transformers import AutoConfig
    from verl.utils.model import get_hf_auto_model_class

    local = Path(path, "config.json").is_file()
    config = AutoConfig.from_pretrained(path) if local else published_config(name)
    loader: Any = get_hf_auto_model_class(config)
    with torch.device("meta"):
        model = loader.from_config(config)
    model.tie_weights()
    unique = {id(one): one.numel() for one in model.parameters()}
    return type(model).__name__, sum(unique.values())


def check_data(path: str) -> int:
    """Check the first rows of a parquet file as verl reads them.

    Args:
        path: The file.

    Returns:
        How many rows the file has.

    Raises:
        ValueError: If a column is missing, or a prompt has another number of image marks than the
            row has images.
    """
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    wanted = {"data_source", "prompt", "images", "reward_model", "extra_info"}
    missing = sorted(wanted - set(file.schema_arrow.names))
    if missing:
        raise ValueError(f"{path} must have the columns {sorted(wanted)}, got none of {missing}")
    for number, row in enumerate(next(file.iter_batches(64)).to_pylist()):
        marks = sum(message["content"].count("<image>") for message in row["prompt"])
        if marks != len(row["images"]):
            raise ValueError(
                f"{path}, row {number}: {len(row['images'])} images must have as many <image> "
                f"marks, got {marks}"
            )
    return file.metadata.num_rows


def main(arguments: list[str] | None = None) -> None:
    """Check one recipe and print what was found."""
    given = sys.argv[1:] if arguments is None else arguments
    name, overrides = (given[0], given[1:]) if given else ("stage3_qwen", [])
    config = compose_recipe(name, overrides)
    print(f"recipe   {name}")
    print(f"shaping  {check_settings(config)}")
    for key in ("train_files", "val_files"):
        path = config.data[key]
        found = check_data(path) if Path(path).is_file() else None
        print(f"data     {path}: {'not there yet' if found is None else f'{found} rows'}")
    kind, size = check_model(name, config.actor_rollout_ref.model.path)
    print(f"model    {kind}, {size / 1e9:.2f} billion parameters")
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    print(
        f"step     {config.data.train_batch_size} prompts × {rollout.n}, updates of "
        f"{actor.ppo_mini_batch_size} prompts on {config.trainer.n_gpus_per_node} × "
        f"{config.trainer.nnodes} GPUs"
    )


if __name__ == "__main__":
    main()
