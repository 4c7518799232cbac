"""One option, four spellings: which value wins, what is refused, and with which words."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpigd.config import schema
from mpigd.config.schema import (
    ALIASES,
    FIELDS,
    OTHER_VARIABLES,
    TYPES,
    Config,
    field_name,
    from_dict,
    from_mapping,
    to_dict,
)
from mpigd.config.units import class_weights_of, class_weights_text
from mpigd.errors import UsageError


def resolve(
    given: dict[str, Any],
    toml: str | None = None,
    env: dict[str, str] | None = None,
    folder: Path = Path(),
) -> Config:
    path = None
    if toml is not None:
        path = str(folder / "run.toml")
        Path(path).write_text(toml)
    return schema.resolve(given, path, env or {})[0]


def refused(options: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        from_mapping(options)
    assert caught.value.code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_precedence(tmp_path: Path) -> None:
    toml, env = (
        "l2 = 2.0\nseed = 2\ndelta = 2.0\n",
        {"MPIGD_L2": "3", "MPIGD_SEED": "3", "PATH": "/bin"},
    )
    found = resolve({"l2": 4.0}, toml, env, tmp_path)
    assert (found.l2, found.seed, found.delta, found.warmup) == (4.0, 3, 2.0, 0)
    assert resolve({}, None, {}) == Config()


def test_aliases_share_one_place_in_the_precedence(tmp_path: Path) -> None:
    assert (
        resolve(
            {"lr": 0.5}, "learning_rate = 0.1", {"MPIGD_LEARNING_RATE": "0.2"}, tmp_path
        ).learning_rate
        == 0.5
    )
    assert resolve({}, "learning_rate = 0.1", {"MPIGD_LR": "0.2"}, tmp_path).learning_rate == 0.2


@pytest.mark.parametrize("key", ["batch_size", "batch-size", "BATCH_SIZE", "Batch-Size"])
def test_spellings(key: str) -> None:
    assert from_mapping({key: 7, "mode": "minibatch"}).batch_size == 7


def test_switches_have_the_spelling_of_the_command_line_everywhere(tmp_path: Path) -> None:
    """A switch has one spelling and one place in the precedence.

    The option --no-intercept is `no_intercept = true` in a file and MPIGD_NO_INTERCEPT=1 in the
    environment.
    """
    assert not from_mapping({"no_intercept": True}).intercept
    assert not resolve({}, "no-standardize = true", {}, tmp_path).standardize
    assert not resolve({}, "intercept = true", {"MPIGD_NO_INTERCEPT": "1"}, tmp_path).intercept
    assert resolve({}, "no_intercept = true", {"MPIGD_INTERCEPT": "1"}, tmp_path).intercept
    assert "did you mean" in refused({"no_quiet": True})


@pytest.mark.parametrize(
    "line", ["data = 3", "data = ['a.h5', 3]", "output = 7", "output = ['m.h5']"]
)
def test_places_are_texts(line: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run.toml: (data|output) = .*: expected a text"):
        resolve({}, line, {}, tmp_path)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("batchsize", "batch_size"),
        ("learning_rte", "learning_rate"),
        ("optimiser", "optimizer"),
        ("epoch", "epochs"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str, tmp_path: Path) -> None:
    assert refused({key: 1}) == f"unknown option {key!r}: did you mean {nearest!r}?"
    with pytest.raises(UsageError, match=nearest):
        resolve({}, f"{key} = 1", {}, tmp_path)
    with pytest.raises(UsageError, match=nearest):
        resolve({}, None, {f"MPIGD_{key.upper()}": "1"})


def test_an_unknown_key_like_nothing_at_all() -> None:
    assert refused({"qqqq": 1}) == "unknown option 'qqqq'"


def test_variables_that_are_no_options_are_left_alone() -> None:
    assert resolve({}, None, dict.fromkeys(OTHER_VARIABLES, "/tmp")) == Config()
    assert resolve({}, None, {"XMPIGD_L2": "1", "mpigd_l2": "1"}) == Config()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", "12", 12),
        ("seed", 12.0, 12),
        ("l2", "1e-4", 1e-4),
        ("l2", 1, 1.0),
        ("intercept", "no", False),
        ("intercept", "TRUE", True),
        ("quiet", "1", True),
        ("validation", "a.h5", ("a.h5",)),
        ("validation", ["a.h5", "b.h5"], ("a.h5", "b.h5")),
        ("validation", [Path("a.h5")], ("a.h5",)),
        ("checkpoint", Path("run"), "run"),
        ("y", "labels", "labels"),
        ("epochs", None, None),
    ],
)
def test_types(key: str, value: object, expected: object) -> None:
    found = getattr(from_mapping({key: value}), key)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("seed", "1.5", "seed = '1.5': expected a whole number"),
        ("seed", 1.5, "seed = 1.5: expected a whole number"),
        ("seed", True, "expected a whole number"),
        ("epochs", math.inf, "expected a whole number"),
        ("epochs", math.nan, "expected a whole number"),
        ("epochs", [1], "expected a whole number"),
        ("learning-rate", "fast", "learning-rate = 'fast': expected a number"),
        ("l2", False, "expected a number"),
        ("intercept", "maybe", "intercept = 'maybe': expected true or false"),
        ("intercept", 2, "expected true or false"),
        ("y", ["a", "b"], "y = ['a', 'b']: expected a text"),
        ("y", None, "expected a text"),
        ("x", {"path": "X"}, "expected a text"),
        ("validation", 5, "validation = 5: expected a text or a list of texts"),
        ("validation", [["a.h5"]], "expected a text or a list of texts"),
    ],
)
def test_a_value_of_another_type(key: str, value: object, words: str) -> None:
    assert words in refused({key: value})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0, "mode": "minibatch"}, "--batch-size 0: must be at least 1"),
        ({"learning_rate": 0}, "--learning-rate 0.0: must be above 0"),
        ({"l2": -1e-9}, "must be at least 0"),
        ({"quantile": 1.5}, "must be at most 1"),
        ({"momentum": 1.0}, "must be below 1"),
        ({"l2": math.nan}, "--l2 nan"),
        ({"learning_rate": math.nan}, "--learning-rate nan"),
        ({"loss": "logistik"}, "--loss logistik: did you mean logistic?"),
        ({"mode": "xyzzy"}, "--mode xyzzy: one of full, minibatch, stochastic"),
        ({"batch_size": 5}, "--batch-size goes with --mode minibatch or stochastic"),
        ({"patience": 2}, "--validation"),
    ],
)
def test_ranges_and_choices(options: dict[str, Any], words: str) -> None:
    assert words in refused(options)


@pytest.mark.parametrize("name", ["l2", "learning_rate", "clip", "delta", "tol"])
def test_infinity_is_no_setting(name: str) -> None:
    assert f"--{name.replace('_', '-')} inf" in refused({name: math.inf})


def test_a_config_made_in_python_is_checked_alike() -> None:
    with pytest.raises(UsageError, match="--l2"):
        Config(l2=-1.0)
    with pytest.raises(UsageError, match="--l2"):
        Config().replace(l2=-1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().l2 = 1.0  # type: ignore[misc]


def test_every_range_is_enforced_at_its_edge() -> None:
    """A value beyond any limit that a field declares is refused."""
    extra: dict[str, Any] = {"mode": "minibatch", "validation": "v.h5"}
    for name, field in FIELDS.items():
        limits = field.metadata
        for value in (limits["low"], limits["high"]):
            if value is not None:
                assert getattr(from_mapping({**extra, name: value}), name) == value
        beyond = [limits["low"] - 1] if limits["low"] is not None else []
        beyond += [limits["above"]] if limits["above"] is not None else []
        beyond += [limits["high"] + 1] if limits["high"] is not None else []
        for value in beyond:
            assert f"--{name.replace('_', '-')} " in refused({**extra, name: value})
        if limits["choices"]:
            for choice in limits["choices"]:
                assert getattr(from_mapping({**extra, name: choice}), name) == choice


def test_every_field_has_help_and_a_type_that_convert_knows() -> None:
    for name, field in FIELDS.items():
        assert field.metadata["help"], name
        assert field_name(name) == name
        assert schema.convert(name, field.default) == field.default
        assert TYPES[name]
    assert not set(ALIASES) & set(FIELDS)


def test_toml(tmp_path: Path) -> None:
    text = (
        'data = ["a.h5", "b.h5"]\noutput = "model.h5"\nloss = "logistic"\nmode = "minibatch"\n'
        "batch-size = 8\nlr = 1\n"
    )
    (tmp_path / "run.toml").write_text(text)
    found, places = schema.resolve({}, str(tmp_path / "run.toml"), {})
    assert places == {"data": ["a.h5", "b.h5"], "output": "model.h5"}
    assert (found.loss, found.batch_size, found.learning_rate) == ("logistic", 8, 1.0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"l2 = = 1", "not TOML"),
        (b"\xff\xfe", "not TOML"),
        (b"[train]\nl2 = 1", "unknown option 'train'"),
    ],
)
def test_toml_that_is_none(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        schema.resolve({}, str(path), {})


def test_a_toml_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: No such file or directory"):
        schema.resolve({}, str(tmp_path / "none.toml"), {})


WEIGHTS = st.floats(0, 1e300)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "loss": st.sampled_from(FIELDS["loss"].metadata["choices"]),
        "l2": st.floats(0, 1e300),
        "learning_rate": st.none() | st.floats(0, 1e300, exclude_min=True),
        "seed": st.integers(0, 2**63),
        "intercept": st.booleans(),
        "validation": st.lists(st.text(min_size=1), max_size=3).map(tuple),
        "class_weight": st.none()
        | st.just("balanced")
        | st.dictionaries(st.text(), WEIGHTS, min_size=1).map(class_weights_text),
        "epochs": st.none() | st.integers(1, 10**9),
    },
)


@given(OPTIONS)
def test_round_trip(options: dict[str, Any]) -> None:
    """A configuration that a model stores as JSON is read back unchanged, to the last bit."""
    before = Config(**options)
    assert from_dict(json.loads(json.dumps(to_dict(before)))) == before


def test_the_stored_configuration_is_complete() -> None:
    assert set(to_dict(Config())) == set(FIELDS)
    with pytest.raises(UsageError, match="unknown option 'from_the_future'"):
        from_dict({**to_dict(Config()), "from_the_future": 1})


@given(OPTIONS)
def test_the_environment_takes_the_same_values(options: dict[str, Any]) -> None:
    plain = {
        key: value for key, value in options.items() if value is not None and key != "validation"
    }
    env = {f"MPIGD_{key.upper()}": str(value) for key, value in plain.items()}
    assert schema.resolve({}, None, env)[0] == Config(**plain)


@given(st.dictionaries(st.text(), WEIGHTS, min_size=1))
def test_any_class_can_be_named(weights: dict[str, float]) -> None:
    """Commas, equals signs, quotes, blanks, newlines, nothing at all."""
    assert {
        part.label: part.value for part in class_weights_of(class_weights_text(weights))
    } == weights


def test_class_weights_in_four_spellings(tmp_path: Path) -> None:
    """Class weights give the same configuration however they are written.

    They can be a text, a mapping in Python, a table in TOML, or an option that is given once or
    more often.
    """
    wanted = Config(class_weight='"a,b"=2.0,c=1.5')
    assert from_mapping({"class_weight": {"a,b": 2, "c": 1.5}}) == wanted
    path = tmp_path / "run.toml"
    for text in ("class_weight = { 'a,b' = 2, c = 1.5 }", "[class-weight]\n'a,b' = 2\nc = 1.5"):
        path.write_text(text, encoding="utf-8")
        assert schema.resolve({}, str(path), {})[0] == wanted
    assert schema.resolve({"class_weight": ['"a,b"=2.0', "c=1.5"]}, None, {})[0] == wanted
    assert schema.resolve({}, None, {"MPIGD_CLASS_WEIGHT": '"a,b"=2.0,c=1.5'})[0] == wanted
    for value in ({"a": "2"}, {"a": True}, {"a": None}, {}):
        with pytest.raises(UsageError, match="class weight"):
            from_mapping({"class_weight": value})


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("Smith, John=2", "'\"Smith, John\"=2'"),
        ("a=1,Smith, John=2,b=3", "'a=1,\"Smith, John\"=2,b=3'"),
        ("a, b, c=0.5", "'\"a, b, c\"=0.5'"),
    ],
)
def test_commas_without_quotes(text: str, advice: str) -> None:
    """The advice is the option's value as a shell takes it, and it is one that is taken."""
    with pytest.raises(
        UsageError, match=r"expected balanced, or LABEL=WEIGHT,\.\.\.; a label with a comma"
    ) as caught:
        Config(class_weight=text)
    option, value = shlex.split(str(caught.value).partition("double quotes: ")[2])
    assert option == "--class-weight" and shlex.quote(value) == advice
    Config(class_weight=value)
    assert [part.label for part in class_weights_of(value)][-1] != text
