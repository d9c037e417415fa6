"""How long the fuzz tests look for trouble: briefly by default, long with `make fuzz`."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import settings


@dataclass(frozen=True)
class Fuzz:
    seconds: int  # for each server
    seed: int


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fuzz")
    group.addoption(
        "--fuzz-seconds", type=int, default=8, help="how long to send requests to each server"
    )
    group.addoption(
        "--fuzz-examples",
        type=int,
        default=None,
        help="how many examples of each property",
    )
    group.addoption("--fuzz-seed", type=int, default=None, help="repeats the run that printed it")


def pytest_configure(config: pytest.Config) -> None:
    examples = config.getoption("--fuzz-examples")
    if examples is not None:
        settings.register_profile("fuzz", max_examples=examples)
        settings.load_profile("fuzz")


@pytest.fixture
def fuzz(pytestconfig: pytest.Config) -> Fuzz:
    seed = pytestconfig.getoption("--fuzz-seed")
    return Fuzz(
        pytestconfig.getoption("--fuzz-seconds"),
        random.randrange(2**31) if seed is None else seed,
    )
