"""slime 0.3.1: its own advantages and its loading of functions, on two ranks over gloo.

slime is not in a package index: pip installs THUDM/slime@624b824 from GitHub, or what
``SLIME_SOURCE`` names, such as a checkout. Whole trainings need Megatron and SGLang on GPUs, and
were not run.
"""

import json
import math
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.environments import environment, run

pytestmark = pytest.mark.matrix
Found = dict[str, Any]
COMMIT = "624b824a898ab0ec1fcb4d373004c7f3852bf515"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    source = os.environ.get("SLIME_SOURCE")
    slime = source or f"git+https://github.com/THUDM/slime@{COMMIT}"
    try:
        python = environment("slime", alone=("megatron-core==0.16.1", slime))
    except subprocess.CalledProcessError:
        if source:
            raise
        pytest.skip(
            "GitHub was not reached: SLIME_SOURCE=/path/to/a/checkout/of/slime does without"
        )
    out = tmp_path_factory.mktemp("slime") / "found"
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    run(python, *launcher, "--module", "tests.integrations.slime_run", str(out))
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in (0, 1)]


def test_strength_zero_is_slime_itself(found: list[Found]) -> None:
    for rank in found:
        assert rank["zero"]["advantages"] == rank["stock"]["advantages"]
        assert rank["whitened_zero"]["advantages"] == rank["whitened"]["advantages"]


def test_two_ranks_shape_as_one_by_hand(found: list[Found]) -> None:
    u: list[float] = []
    for rank in found:
        data = rank["rollout"]
        for entropy, mask in zip(data["entropy"], data["loss_masks"], strict=True):
            chosen = [h for h, kept in zip(entropy, mask, strict=True) if kept]
            u.append(sum(chosen) / len(chosen))
    threshold = sum(u) / 3  # three completions; the mean of the ranks' means would be another
    row = 0
    for rank in found:
        assert rank["shaped"]["state"] == [pytest.approx(threshold, abs=1e-5), 1]
        before, after = rank["stock"]["advantages"], rank["shaped"]["advantages"]
        for old, new, mask in zip(before, after, rank["rollout"]["loss_masks"], strict=True):
            factor = math.tanh((u[row] - threshold) / threshold)
            for a, b, kept in zip(new, old, mask, strict=True):
                if kept:
                    assert a == pytest.approx(b + 0.5 * factor * abs(b), abs=1e-5)
            row += 1


def test_the_path_of_a_custom_advantage_function(found: list[Found]) -> None:
    for rank in found:
        assert rank["own_function"]["advantages"] == rank["shaped"]["advantages"]
        assert rank["own_function"]["returns"] == rank["stock"]["returns"]


def test_a_resumed_run_goes_on_with_the_state(found: list[Found]) -> None:
    for rank in found:
        assert rank["resumed"]["state"] == rank["unbroken"]["state"]
        assert rank["resumed"]["advantages"] == rank["unbroken"]["advantages"]


def test_without_entropies_the_options_that_bring_them_are_named(found: list[Found]) -> None:
    for rank in found:
        assert "--use-rollout-entropy --get-mismatch-metrics" in rank["refused"]
