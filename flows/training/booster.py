"""Train an XGBoost booster on blocks, with early stopping."""

from collections.abc import Iterator
from typing import Any

import xgboost

from contracts.core.contract import Contract
from flows.training.blocks import Block


def train_booster(contract: Contract, blocks: Iterator[Block], turns: int, rounds: int, threads: int,
             held_out: Block | None = None) -> xgboost.Booster:
    """A booster of `rounds` rounds, each of the first `turns` blocks
    growing its share of them; fewer where `held_out` says stop."""
    evals = [(dmatrix(contract, held_out), "newest")] if held_out else []
    stop = [xgboost.callback.EarlyStopping(rounds=contract.patience)] if held_out else []
    booster: xgboost.Booster | None = None
    done = 0
    for turn, block in zip(range(1, turns + 1), blocks):
        upto = rounds * turn // turns
        params = booster_params(contract, threads)
        params["seed"] += turn - 1  # else each block would draw the same columns
        booster = xgboost.train(params, dmatrix(contract, block), upto - done, evals=evals, callbacks=stop,
                                xgb_model=booster, verbose_eval=False)
        done = booster.num_boosted_rounds()
        if done < upto:
            break
    if booster is None:
        raise ValueError("no block to train on")
    return booster


def booster_params(contract: Contract, threads: int) -> dict[str, Any]:
    """What XGBoost is asked for."""
    return {"tree_method": "hist", "objective": "multi:softprob", "num_class": len(contract.label.classes),
            "seed": contract.seed, "nthread": threads, **contract.xgboost}


def feature_types(contract: Contract) -> list[str]:
    """XGBoost's letter for each feature's kind."""
    return ["c" if feature.kind == "category" else "q" for feature in contract.features]


def dmatrix(contract: Contract, block: Block) -> xgboost.DMatrix:
    return xgboost.DMatrix(block.matrix, block.labels, feature_types=feature_types(contract),
                           enable_categorical=True)
