"""A stage-2 model to keep, with all that is needed to make it again."""

import hashlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

from examples.ophthareason.model import load, save
from examples.ophthareason.settings import load_settings

__all__ = ["keep"]


def keep(run: Path, folder: Path, *, stages: Sequence[str], command: str) -> None:
    """Write the stage-2 model in half precision, with what is needed to make it again.

    Args:
        run: The folder of a finished run.
        folder: Where the model goes; ``provenance.json`` lies beside its weights.
        stages: Their names, in order.
        command: The command that made it.
    """
    model, processor = load(run / stages[-1] / "model")
    save(model.half(), processor, folder)
    code = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    weights = (folder / "model.safetensors").read_bytes()
    done = {stage: json.loads((run / stage / "done.json").read_text()) for stage in stages}
    provenance = {
        "made by": command,
        "commit": code.stdout.strip() or "unknown",
        "settings": asdict(load_settings(run / "settings.yaml")),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "sha256 of model.safetensors": hashlib.sha256(weights).hexdigest(),
        "stages": done,
        "note": "Learnt from synthetic phantoms only. Research software, not for clinical use.",
    }
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
