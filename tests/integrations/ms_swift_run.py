# pyright: basic, reportMissingImports=false
# Runs in an environment of its own, where ms-swift is installed.
"""ms-swift's command ``swift rlhf``, beside a vLLM and a torchvision that are not for it."""

import json
import sys
from pathlib import Path

from uadt.integrations.verl.cpu import shims

sys.modules["vllm"] = None  # type: ignore[assignment]
shims.install()


def write_model(folder: Path) -> None:
    from tests.integrations import tiny_models

    words = tiny_models.tokenizer()
    tiny_models.text_model(words).save_pretrained(folder)
    words.save_pretrained(folder)
    with (folder / "data.jsonl").open("w") as file:
        for row in map(dict, tiny_models.sums(16)):
            message = {"role": "user", "content": row["prompt"]}
            file.write(json.dumps({"messages": [message], "solution": "B"}) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "model":
        write_model(Path(sys.argv[2]))
    else:
        from swift.pipelines import rlhf_main

        rlhf_main()
