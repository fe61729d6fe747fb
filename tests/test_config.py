from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from torch import Tensor

from uadt.config import SHAPINGS, schema, shaping_from_config, shaping_to_config
from uadt.shaping import (
    EDGE,
    STARE,
    UADT,
    UCAS,
    Clip,
    EntropyAdvantage,
    KeepSign,
    MeanOne,
    Scale,
    chain,
)
from uadt.types import EmptyState, Rollout, Shaped, Shaping

REQUIRED: dict[str, dict[str, Any]] = {
    "clip": {"low": -1.0, "high": 2.0},
    "scale": {"by": 0.5},
    "keep_sign": {"shaping": {"name": "uadt"}},
    "mean_one": {"shaping": {"chain": [{"name": "edge"}, {"name": "uadt"}]}},
}
"""The arguments without a default."""


@pytest.mark.parametrize("name", sorted(SHAPINGS))
def test_every_name_makes_its_shaping_and_comes_back(name: str) -> None:
    shaping = shaping_from_config({"name": name, **REQUIRED.get(name, {})})
    assert type(shaping) is SHAPINGS[name]
    written = shaping_to_config(shaping)
    assert shaping_from_config(written) == shaping
    # and through a file
    assert shaping_from_config(OmegaConf.create(OmegaConf.to_yaml(written))) == shaping  # pyright: ignore[reportArgumentType] - a DictConfig is a Mapping


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, UADT()),  # nothing said is UADT as it comes
        ({"uadt": {}}, UADT()),
        ({"uadt": None}, UADT()),  # `uadt:` in YAML
        ({"strength": 0.3}, UADT(strength=0.3)),
        ({"uadt": {"strength": 0.3, "per_task": True}}, UADT(strength=0.3, per_task=True)),
        ({"scale": 1}, UADT(scale=1.0)),  # a whole number where a float is meant
        ({"scale": "relative"}, UADT()),
        ({"threshold": None}, UADT()),
        ({"threshold": 0.4, "span": "think"}, UADT(threshold=0.4, span="think")),
        ({"name": "edge"}, EDGE()),
        (
            {"name": "ucas", "faithful_to": "code", "vocab_size": 9},
            UCAS(faithful_to="code", vocab_size=9),
        ),
        ({"chain": []}, chain()),
        (
            {"chain": [{"strength": 0.3}, {"name": "clip", "low": -3, "high": 3}]},
            chain(UADT(strength=0.3), Clip(low=-3.0, high=3.0)),
        ),
        (
            {"name": "keep_sign", "shaping": {"name": "entropy_advantage", "alpha": 0.1}},
            KeepSign(shaping=EntropyAdvantage(alpha=0.1)),
        ),
        (
            {
                "chain": [
                    {"name": "mean_one", "shaping": {"chain": [{"name": "scale", "by": 2}, {}]}}
                ]
            },
            chain(MeanOne(shaping=chain(Scale(by=2.0), UADT()))),
        ),
    ],
)
def test_configurations_by_hand(config: dict[str, Any], expected: Shaping) -> None:
    assert shaping_from_config(config) == expected
    assert shaping_from_config(OmegaConf.create(config)) == expected
    assert shaping_from_config(shaping_to_config(expected)) == expected


def test_a_yaml_file_describes_a_chain(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "uadt:\n  chain:\n    - {strength: 0.25}\n    - {name: stare, adaptive: true}\n"
    )
    assert shaping_from_config(path) == chain(UADT(strength=0.25), STARE(adaptive=True))


def test_a_dotlist_describes_a_shaping() -> None:
    assert shaping_from_config(["strength=0.25"]) == UADT(strength=0.25)
    assert shaping_from_config(["uadt.name=clip", "uadt.low=-1", "uadt.high=1"]) == Clip(
        low=-1.0, high=1.0
    )
    assert shaping_from_config([]) == UADT()


@pytest.mark.parametrize(
    "dotlist",
    [
        ["chain=[{name: scale, by: 0.5}, {name: clip, low: -3, high: 3}]"],
        ["uadt.chain=[{name: scale, by: 0.5},{name: clip, low: -3, high: 3}]"],
        ["uadt={chain: [{name: scale, by: 0.5}, {name: clip, low: -3, high: 3}]}"],
    ],
)
def test_a_dotlist_describes_a_chain(dotlist: list[str]) -> None:
    assert shaping_from_config(dotlist) == chain(Scale(by=0.5), Clip(low=-3.0, high=3.0))


def test_a_dotlist_reaches_into_a_shaping_inside_of_another() -> None:
    dotlist = ["name=keep_sign", "shaping.name=entropy_advantage", "shaping.alpha=0.4"]
    assert shaping_from_config(dotlist) == KeepSign(shaping=EntropyAdvantage(alpha=0.4))
    parts = "shaping.chain=[{name: scale, by: 2}, {name: edge}]"
    nested = shaping_from_config(["name=mean_one", parts])
    assert nested == MeanOne(shaping=chain(Scale(by=2.0), EDGE()))


def test_mistakes_in_the_chain_of_a_dotlist_are_named_with_their_place() -> None:
    with pytest.raises(ValueError, match=r"uadt\.chain\[1\] \(clip\) needs high, got \['low'\]"):
        shaping_from_config(["chain=[{name: edge}, {name: clip, low: -3}]"])


def test_interpolations_are_resolved() -> None:
    config = OmegaConf.create({"all": 0.2, "uadt": {"strength": "${all}"}})
    assert shaping_from_config(config.uadt) == UADT(strength=0.2)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "utad"}, r"uadt: the name must be one of \['clip', 'edge', .*'utad'"),
        (
            {"strengths": 0.5},
            r"uadt \(uadt\) must have keys of \['decay', 'strength', .* got 'strengths'",
        ),
        ({"name": "clip", "low": 0}, r"uadt \(clip\) needs high, got \['low'\]"),
        ({"strength": 1.5}, r"uadt \(uadt\): strength must be in \[0, 1\), got 1\.5"),
        ({"strength": "much"}, r"uadt \(uadt\): Value 'much' of type 'str' could not be converted"),
        ({"per_task": "perhaps"}, r"uadt \(uadt\): Value 'perhaps' is not a valid bool"),
        ({"reduce": "median"}, r"uadt \(uadt\): reduce must be one of 'mean'"),
        ({"chain": {"name": "uadt"}}, r"uadt\.chain must be a list of shapings, got"),
        (
            {"chain": [], "strength": 0.5},
            r"with a chain must hold nothing else, got \['strength'\]",
        ),
        ({"chain": ["uadt"]}, r"uadt\.chain\[0\] must be a mapping .*got 'uadt'"),
        ({"chain": [{}, {"name": "x"}]}, r"uadt\.chain\[1\]: the name must be one of"),
        (
            {"name": "keep_sign", "shaping": {"decay": 2}},
            r"uadt\.shaping \(uadt\): decay must be in",
        ),
        ({"name": "keep_sign"}, r"uadt \(keep_sign\) needs shaping, got \[\]"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_mistakes_are_named_with_their_place(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        shaping_from_config(config)


def test_a_class_inside_of_a_function_cannot_be_written() -> None:
    class Mine(Clip):
        pass

    with pytest.raises(ValueError, match=r"a shaping of .* at the top of a module, can"):
        shaping_to_config(Mine(low=0.0, high=1.0))


@dataclass(frozen=True)
class Damp:
    """A user's own shaping."""

    by: float = 0.5

    def init(self) -> EmptyState:
        return EmptyState()

    def __call__(self, advantage: Tensor, rollout: Rollout, state: EmptyState) -> Shaped:
        return Shaped(advantage * self.by, state, {})


def test_a_shaping_of_the_users_own_is_named_by_its_module() -> None:
    own = shaping_from_config({"chain": [{"name": "tests.test_config:Damp", "by": 0.25}, {}]})
    assert own == chain(Damp(by=0.25), UADT())
    assert shaping_from_config(shaping_to_config(own)) == own
    assert shaping_to_config(Damp()) == {"name": "tests.test_config:Damp", "by": 0.5}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tests.test_config:Nothing", "must be a dataclass, got None"),
        ("tests.test_config:pytest", "must be a dataclass, got <module 'pytest'"),
        (
            "tests.test_config",
            r"must be one of .*or module:Class, got 'tests.test_config'",
        ),
    ],
)
def test_what_is_no_shaping_of_the_users_is_refused(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        shaping_from_config({"name": name})
    with pytest.raises(ImportError, match="no_such_module"):
        shaping_from_config({"name": "no_such_module:Mine"})


@pytest.mark.parametrize("name", sorted(SHAPINGS))
def test_every_shaping_has_a_structured_config(name: str) -> None:
    config = OmegaConf.structured(schema(name))
    assert config.name == name
    fields = [key for key in config if key != "name"]
    assert fields == [*SHAPINGS[name].__dataclass_fields__]


def test_a_structured_config_keeps_types() -> None:
    config = OmegaConf.structured(schema("uadt"))
    config.strength = "0.25"  # as a command line would give it
    assert config.strength == 0.25
    assert shaping_from_config(config) == UADT(strength=0.25)


def test_the_table_of_names_cannot_be_added_to() -> None:
    with pytest.raises(TypeError, match="does not support item assignment"):
        SHAPINGS["mine"] = UADT  # pyright: ignore[reportIndexIssue] - the mistake in question
