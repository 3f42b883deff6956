"""Train an XGBoost booster on blocks, with early stopping."""

from collections.abc import Iterator
from typing import Any, TypedDict

import xgboost

from contracts.core.classification import training_objective
from contracts.core.contract import Contract
from flows.training.blocks import Block


class StoppingResult(TypedDict):
    """How many `rounds` early stopping found, with the log loss on the `stop_rows` held out for it."""

    rounds: int
    stop_log_loss: float
    stop_rows: int


def train_booster(contract: Contract, blocks: Iterator[Block], block_count: int, rounds: int, threads: int,
                  held_out: Block | None = None) -> xgboost.Booster:
    """A booster of `rounds` trees a class, each of the first `block_count` blocks training
    an equal part of them; fewer if the loss on the rows `held_out` stops falling."""
    evals = [(dmatrix(contract, held_out), "newest")] if held_out else []
    stop = [xgboost.callback.EarlyStopping(rounds=contract.patience)] if held_out else []
    booster: xgboost.Booster | None = None
    done = 0
    for number, block in zip(range(block_count), blocks):
        target = rounds * (number + 1) // block_count
        params = booster_params(contract, threads)
        params["seed"] += number  # else each block would draw the same columns
        booster = xgboost.train(params, dmatrix(contract, block), target - done, evals=evals, callbacks=stop,
                                xgb_model=booster, verbose_eval=False)
        done = booster.num_boosted_rounds()
        if done < target:
            break
    if booster is None:
        raise ValueError("no block to train on")
    return booster


def booster_params(contract: Contract, threads: int) -> dict[str, Any]:
    """XGBoost's parameters: those of the task, and the contract's."""
    return {"tree_method": "hist", **training_objective(contract.label), "seed": contract.seed,
            "nthread": threads, **contract.xgboost}


def feature_types(contract: Contract) -> list[str]:
    """XGBoost's letter for each feature's kind."""
    return ["c" if feature.kind == "category" else "q" for feature in contract.features]


def dmatrix(contract: Contract, block: Block) -> xgboost.DMatrix:
    return xgboost.DMatrix(block.matrix, block.labels, weight=block.weights,
                           feature_types=feature_types(contract), enable_categorical=True)
