"""Parts of a submission that need no server: folders, searches, loggers, and what a plan resolves to."""

from __future__ import annotations

from typing import Any

import pytest

from stack.errors import BadRequest
from stack.training.folder import check_apart, folder_of
from stack.training.options import parse_loggers, parse_search, probes
from stack.training.plan import Parameter


def test_folders() -> None:
    assert folder_of("job", None) == "training/job"
    assert folder_of("job", "training/job") == "training/job"
    assert folder_of("job", "storage://a/b.c_d-e/") == "a/b.c_d-e"
    assert folder_of("job", "Training2/x") == "Training2/x"


def test_folders_do_not_overlap() -> None:
    others = [("first", "a/b"), ("second", "training/second")]
    for folder in ("a/bc", "b", "a/c"):
        check_apart(folder, others)
    for folder in ("a/b", "a", "a/b/c"):
        with pytest.raises(BadRequest, match="where job 'first' keeps its files"):
            check_apart(folder, others)


def search(**changes: Any) -> dict[str, Any]:
    return {"parameters": {"lr": {"type": "loguniform", "min": 1e-5, "max": 1e-3}}, **changes}


def test_searches() -> None:
    assert parse_search({}, "sft", has_validation=False) is None
    found = parse_search(search(), "sft", has_validation=False)
    assert found is not None
    assert (found.metric, found.mode, found.num_trials) == ("train_loss", "min", 8)
    found = parse_search(search(), "sft", has_validation=True)
    assert found is not None
    assert (found.metric, found.mode) == ("validation_loss", "min")
    found = parse_search(search(metric="rewards/accuracies"), "dpo", has_validation=False)
    assert found is not None
    assert found.mode == "max"


def parameter(**values: Any) -> dict[str, Any]:
    return {"parameters": {"lr": values}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_trials": 3}, "hyperparam_search_config.parameters: is required"),
        (
            search(parameters={}),
            "hyperparam_search_config.parameters: dictionary should have at least 1 item",
        ),
        (
            search(trials=3),
            "hyperparam_search_config.trials: there is no such field; known are parameters, num_",
        ),
        (
            search(num_trials=0),
            "hyperparam_search_config.num_trials: input should be greater than or equal to 1",
        ),
        (search(seed=-1), "hyperparam_search_config.seed: from 0 to 4294967295, not -1"),
        (search(scheduler="magic"), "hyperparam_search_config.scheduler: input should be 'asha' or 'none'"),
        (search(metric="speed"), "metric: one of train_loss, validation_loss, perplexity, not 'speed'"),
        (search(metric="rewards/margins"), "metric: one of train_loss, validation_loss, perplexity"),
        (search(metric=["x"]), "hyperparam_search_config.metric: input should be a valid string"),
        (search(metric="validation_loss"), "needs training_config.data_config.validation_dataset_id"),
        (parameter(type="magic"), "parameters.lr.type: input should be 'grid', 'choice', 'uniform'"),
        (parameter(type="grid"), "parameters.lr.values: a list of 1 to 100 values is needed"),
        (parameter(type="grid", values=[]), "parameters.lr.values: a list of 1 to 100 values is needed"),
        (parameter(type="choice", values=[0.1] * 101), "parameters.lr.values: a list of 1 to 100 values"),
        (parameter(type="choice", values=[None]), "parameters.lr.values: numbers, texts, true or false"),
        (parameter(type="grid", values=[1], min=1), "parameters.lr: grid has values, no min and max"),
        (parameter(type="uniform", min=0.1), "parameters.lr: uniform needs min and max"),
        (parameter(type="uniform", min=0.1, max=0.1), "parameters.lr: min is below max, not 0.1 and 0.1"),
        (parameter(type="uniform", min=1, max=0), "parameters.lr: min is below max, not 1 and 0"),
        (parameter(type="uniform", min=0, max=1, values=[1]), "lr: uniform has min and max, no values"),
        (
            parameter(type="loguniform", min=0, max=1),
            "parameters.lr.min: loguniform begins above 0, not at 0",
        ),
        (parameter(type="randint", min=0.5, max=3), "parameters.lr: randint is between whole numbers"),
        (parameter(type="uniform", min=0, max=1, step=2), "lr.step: there is no such field; known are type,"),
        ({"parameters": {"lr": 3}}, "hyperparam_search_config.parameters.lr: input should be a valid dict"),
    ],
)
def test_bad_searches(config: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_search(config, "sft", has_validation=False)
    assert message in str(refused.value)


def test_a_search_is_bounded() -> None:
    grid = {"type": "grid", "values": list(range(1, 11))}
    config = {"parameters": {"rank": grid, "alpha": grid}, "num_trials": 10}
    assert parse_search(config, "sft", has_validation=False) is not None  # 10 * 10 * 10
    with pytest.raises(BadRequest, match="are 1100 trials, at most 1000 are run"):
        parse_search(config | {"num_trials": 11}, "sft", has_validation=False)


def test_probes_of_a_range() -> None:
    assert probes(Parameter(type="choice", values=[1, True, "x"])) == [1, True, "x"]
    low, within, high = probes(Parameter(type="uniform", min=4, max=16))
    assert (low, high) == (4.0, 16.0)
    assert not within.is_integer()
    assert probes(Parameter(type="randint", min=1, max=4)) == [1, 3]  # the highest is left out


def test_a_logger_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        BadRequest, match=r"logger_config\.mlflow: is not installed .*pip install 'stack\[mlflow\]'"
    ):
        parse_loggers({"mlflow": {}, "wandb": None})


def test_loggers() -> None:
    assert parse_loggers({}).model_dump() == {"mlflow": None, "wandb": None}
    found = parse_loggers({"mlflow": {"experiment": "a b", "run_name": "ü"}})
    assert found.mlflow == {"experiment": "a b", "run_name": "ü"}
    for value in (" ", "a\nb", "x" * 129, "https://evil/x"):
        with pytest.raises(BadRequest, match=r"logger_config\.wandb\.name: a name of at most 128"):
            parse_loggers({"wandb": {"name": value}})
    with pytest.raises(BadRequest, match="takes no # / in names, as in 'a/b#c'"):
        parse_loggers({"wandb": {"project": "a/b#c"}})
    assert parse_loggers({"mlflow": {"experiment": "/Shared/x"}}).mlflow == {"experiment": "/Shared/x"}
