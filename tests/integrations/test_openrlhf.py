"""OpenRLHF 0.11.2: its real experience maker and trainer base, patched as a user's run is.

Only flash-attention is a stub. Whole trainings need GPUs and were not run.
"""

import json
import math
from typing import Any

import pytest

from tests.integrations.environments import environment, run

pytestmark = pytest.mark.matrix
Found = dict[str, Any]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    packages = (
        "openrlhf==0.11.2 ray==2.55.0 deepspeed==0.19.8 bitsandbytes==0.50.2 hjson loralib optree "
        "torchmetrics lightning-utilities transformers-stream-generator"
    )
    # DeepSpeed without its own operators needs neither a GPU nor a compiler.
    built = {"DS_BUILD_OPS": "0"}
    python = environment("openrlhf", alone=tuple(packages.split()), variables=built)
    out = tmp_path_factory.mktemp("openrlhf") / "found.json"
    run(python, "-m", "tests.integrations.openrlhf_run", str(out))
    return json.loads(out.read_text())


def surprisals(one: Found) -> list[float]:
    """U of each completion: the mean of -log p over the tokens that the policy chose."""
    out: list[float] = []
    for logprobs, masks in zip(one["logprobs"], one["mask"], strict=True):
        for row, mask in zip(logprobs, masks, strict=True):
            chosen = [-value for value, kept in zip(row, mask, strict=True) if kept]
            out.append(sum(chosen) / len(chosen))
    return out


def test_strength_zero_is_openrlhf_itself(found: Found) -> None:
    assert found["stock"]["maker"] == "RemoteExperienceMaker"
    assert found["zero"]["maker"] == "UADTExperienceMaker"
    assert found["zero"]["advantages"] == found["stock"]["advantages"]


def test_shaping_by_hand(found: Found) -> None:
    u = surprisals(found["shaped"])
    threshold = sum(u) / len(u)  # the first batch is judged by its own mean
    row = 0
    for batch, masks in enumerate(found["shaped"]["mask"]):
        for place, mask in enumerate(masks):
            factor = math.tanh((u[row] - threshold) / threshold)
            before = found["stock"]["advantages"][0][batch][place]
            after = found["shaped"]["advantages"][0][batch][place]
            for a, b, kept in zip(after, before, mask, strict=True):
                if kept:
                    assert a == pytest.approx(b + 0.5 * factor * abs(b), abs=1e-5)
            row += 1


def test_two_steps_move_the_state_twice_although_installed_twice(found: Found) -> None:
    assert found["shaped"]["written"]["uadt"]["state"]["EmaState"]["step"] == 2


def test_metrics_are_logged_beside_those_of_the_stack(found: Found) -> None:
    logged = found["shaped"]["logged"]
    assert logged["loss"] == 0.5
    u = surprisals(found["shaped"])
    assert logged["uadt/threshold/mean"] == pytest.approx(sum(u) / len(u), abs=1e-5)


def test_the_state_travels_with_the_checkpoint(found: Found) -> None:
    assert found["shaped"]["written"]["episode"] == 3  # what the stack saves is still there
    # Two steps, saved, and two more.
    assert found["resumed"]["written"]["uadt"]["state"]["EmaState"]["step"] == 4


def test_a_shaping_that_reads_entropy_is_refused_at_once(found: Found) -> None:
    assert "hands over group, logprob, reward and nothing else" in found["refused"]


def test_in_a_ray_actor_the_hook_is_what_counts(found: Found) -> None:
    # This process was patched before Ray started, and the actor knows nothing of it.
    assert found["driver"]["maker"] == "RemoteExperienceMaker"
    assert found["worker"]["maker"] == "UADTExperienceMaker"
    assert found["worker"]["advantages"] == found["shaped"]["advantages"]
