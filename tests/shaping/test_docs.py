"""The lines of docs/methods.md do what they say."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from uadt.config import SHAPINGS, shaping_from_config
from uadt.shaping import UADT, Chain, Clip, EntropyAdvantage, KeepSign, chain

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
LINES = re.findall(r"^\+uadt.*$", PAGE, flags=re.MULTILINE)
YAML = re.findall(r"^YAML: `(.*)`$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize(("line", "in_yaml"), list(zip(LINES, YAML, strict=True)))
def test_each_command_line_makes_a_shaping_and_its_yaml_the_same(line: str, in_yaml: str) -> None:
    parser = pytest.importorskip(
        "hydra.core.override_parser.overrides_parser", reason="verl reads its command line by Hydra"
    ).OverridesParser.create()
    config = OmegaConf.create()
    for override in parser.parse_overrides(line.split()):
        OmegaConf.update(config, override.key_or_group, override.value())
    shaping = shaping_from_config(config.uadt)
    assert shaping_from_config(yaml.safe_load(in_yaml)) == shaping
    default = line == "+uadt.strength=0.5"  # the default, written out
    assert (shaping == UADT()) is default


def test_each_dotlist_makes_a_shaping() -> None:
    lists = re.findall(r"^shaping_from_config\((\[.*\])\)$", PAGE, flags=re.MULTILINE)
    found = [shaping_from_config(ast.literal_eval(dotlist)) for dotlist in lists]
    assert found == [
        chain(UADT(strength=0.5), Clip(low=-3.0, high=3.0)),
        KeepSign(shaping=EntropyAdvantage(alpha=0.1)),
    ]


def test_each_method_has_a_line_and_a_row() -> None:
    shown = {name for line in LINES for name in re.findall(r"name[=:](\w+)", line)}
    small = {"clip", "scale", "keep_sign", "mean_one"}
    assert set(SHAPINGS) - small - {"uadt"} <= shown
    for name in SHAPINGS:
        assert f"`{name}`" in PAGE, name


def test_the_yaml_makes_a_chain() -> None:
    block, _ = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    shaping = shaping_from_config(yaml.safe_load(block))
    assert isinstance(shaping, Chain)
    assert len(shaping.shapings) == 3
