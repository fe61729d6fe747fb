"""More real runs, for the full matrix: an asynchronous mode, with a chain kept per task."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("ray", reason="Ray is not installed")

from verl_runs import diagnosed, overrides, run

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(2400)]

Tell = Callable[[str], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


def test_colocate_async_with_a_chain_and_a_checkpoint(
    text_assets: Path, folder: Path, tell: Tell
) -> None:
    where = folder / "async"
    arguments = [
        *overrides(text_assets, where, steps=3),
        *diagnosed(where),
        "trainer.v1.trainer_mode=uadt_colocate_async",
        "trainer.save_freq=3",
        "uadt.chain=[{name:uadt,per_task:true},{name:clip,low:-1,high:1}]",
    ]
    ran = run(where, arguments, tell=tell)
    assert ran.returncode == 0, ran.tail()
    assert ran.metrics[3]["uadt/updates"] == 3
    assert "uadt/threshold/mean/tiny/sums" in ran.metrics[3]
    assert (where / "checkpoints" / "global_step_3" / "uadt_state.json").exists()
    for records in ran.diagnostics.values():
        assert {record["task"] for record in records} <= {"tiny/sums", "tiny/digits"}
        assert max(value for r in records for value in r["shaped_advantages"]) <= 1.0
