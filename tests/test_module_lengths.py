"""A module that nobody can read in one sitting is two modules."""

from pathlib import Path

LONGEST = 400
PACKAGE = Path(__file__).parents[1] / "uadt"


def test_no_module_is_longer_than_a_sitting() -> None:
    lengths = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert lengths["types.py"] > 100  # it looks where the modules are
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
