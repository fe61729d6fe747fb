"""What the package promises about itself: its imports, its names, its wheel."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import uadt

ROOT = Path(__file__).resolve().parents[1]
STACKS = ("verl", "trl", "transformers", "accelerate", "ray", "vllm", "omegaconf")


def run(code: str, *, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    # Isolated: neither the working directory nor PYTHONPATH may stand in for an installation.
    return subprocess.run(
        [python, "-I", "-c", code], capture_output=True, text=True, timeout=300, check=False
    )


def loaded(code: str) -> set[str]:
    done = run(f"{code}\nimport sys\nprint(*sys.modules)")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_import_uadt_imports_no_stack_and_no_torch() -> None:
    modules = loaded("import uadt")
    assert not modules.intersection({*STACKS, "torch", "numpy"})


def test_the_core_imports_no_stack() -> None:
    modules = loaded(
        "import uadt; [getattr(uadt, name) for name in uadt.__all__ if name != 'config']"
    )
    assert "torch" in modules
    assert not modules.intersection(STACKS)


def test_that_test_would_see_a_stack() -> None:
    assert "omegaconf" in loaded("import uadt.config")


@pytest.mark.parametrize("module", ["answers", "rewards"])
def test_text_works_where_torch_is_not_installed(module: str) -> None:
    done = run(
        "import sys\n"
        "for name in ('torch', 'numpy', 'jaxtyping', 'omegaconf'): sys.modules[name] = None\n"
        f"import uadt\nprint(uadt.{module}.__name__)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"uadt.{module}"


def test_every_public_name_resolves() -> None:
    for name in uadt.__all__:
        assert getattr(uadt, name) is not None
    assert set(uadt.__all__) <= set(dir(uadt))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'uadt' has no attribute 'adam'"):
        _ = uadt.adam  # pyright: ignore[reportAttributeAccessIssue]


def test_the_fixed_names_are_there() -> None:
    # The contract's list, written out: a name that vanishes breaks somebody's trainer.
    fixed = {
        "token_entropy", "token_statistics", "linear_token_statistics", "topk_entropy",
        "sequence_mean", "sequence_top_mean", "sequence_max", "ema_threshold", "tanh_factor",
        "shape_advantage", "group_advantage", "UADT", "Rollout", "Shaped", "Shaping", "chain",
        "state_to_dict", "state_from_dict", "check_rollout", "answers", "rewards",
    }  # fmt: skip
    assert fixed <= set(uadt.__all__)


def test_the_wheel_installs_into_an_empty_environment(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "uadt/py.typed",
        "uadt/ophthalmic_terms.json",
        "uadt/templates/report.html",
        "uadt/kernels/native.cpp",
        "uadt/integrations/verl/config/uadt_ppo.yaml",
    } <= names
    assert not [name for name in names if name.startswith(("tests/", "examples/", "docs/"))]

    venv.create(tmp_path / "empty", with_pip=True)
    python = str(tmp_path / "empty" / "bin" / "python")
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel],
        check=True,
        capture_output=True,
        timeout=300,
    )
    code = (
        "import uadt; print(uadt.__version__, uadt.rewards.format_reward('no tags'), uadt.__file__)"
    )
    done = run(code, python=python)
    assert done.returncode == 0, done.stderr
    version, reward, where = done.stdout.split(maxsplit=2)
    assert (version, float(reward)) == (uadt.__version__, 0.0)
    assert where.strip().startswith(str(tmp_path))
