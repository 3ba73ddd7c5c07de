"""What a sweep found: a table, the importance of each parameter, results.csv, JSON, best.toml."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from deploy.settings import resolve, to_toml
from deploy.sweep.plan import Plan
from deploy.sweep.trial import REASON, SECONDS, SEED
from deploy.table import Table
from learner.run_folder import replace_file

_SHOWN = 10
_NAMES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
_FEWEST_FOR_IMPORTANCE = 4


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that have ended, the best first, then those pruned, then those that failed."""
    order = list(_NAMES)
    trials = study.get_trials(deepcopy=False, states=tuple(_NAMES))
    return sorted(trials, key=lambda trial: (order.index(trial.state), -_value(trial), trial.number))


def best(study: optuna.Study) -> FrozenTrial | None:
    """Return the best trial that is complete, None before there is one."""
    return next((trial for trial in ended(study) if trial.state == TrialState.COMPLETE), None)


def importances(study: optuna.Study) -> dict[str, float]:
    """Return how much of the scores each parameter explains (PED-ANOVA), {} of too few trials."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < _FEWEST_FOR_IMPORTANCE:
        return {}
    varied = [name for name in complete[0].params if len({t.params[name] for t in complete}) > 1]
    if not varied:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    with warnings.catch_warnings(action="ignore"):  # of few trials it says that it tells little
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied)
    return {name: share for name, share in found.items() if math.isfinite(share)}


def to_plain(study: optuna.Study, plan: Plan) -> dict[str, Any]:
    """Return the JSON form of a sweep."""
    first = best(study)
    return {
        "sweep": plan.folder.name,
        "objective": plan.search.objective,
        "training_seeds": plan.search.training_seeds,
        "best": _row(first) if first else None,
        "importances": importances(study),
        "trials": [_row(trial) for trial in sorted(ended(study), key=lambda trial: trial.number)],
    }


def write(study: optuna.Study, plan: Plan) -> None:
    """Write results.csv, and best.toml once a trial is complete."""
    trials = sorted(ended(study), key=lambda trial: trial.number)
    rows = [_flat(_row(trial), plan) for trial in trials]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    replace_file(plan.folder / "results.csv", text.getvalue())
    if first := best(study):
        place = f"trial {first.number} of the sweep {plan.folder.name}"
        told = f"# The best of {len(rows)} trials, with score {first.value:.4f}: {place}"
        replace_file(plan.folder / "best.toml", f"{told}\n{best_settings(plan, first.params)}")


def _flat(row: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Return a trial as a line of results.csv."""
    head = {name: row[name] for name in ("trial", "state", "score")}
    values = {parameter.name: row["values"].get(parameter.name) for parameter in plan.space}
    over = {name: row[name] for name in ("mean", "worst")}
    scores = {f"score of seed {seed}": row["scores"].get(str(seed)) for seed in plan.search.training_seeds}
    tail = {name: row[name] for name in ("seconds", "reason")}
    return {**head, **values, **over, **scores, **tail, **row["returns"]}


def best_settings(plan: Plan, values: Mapping[str, Any]) -> str:
    """Return the settings of the best trial for `fleet train --config`: its seed is that of any run again."""
    chosen = resolve(values, plan.folder / "base.toml")
    return to_toml(replace(chosen, run=replace(chosen.run, seed=1)))


def table(study: optuna.Study, plan: Plan) -> Table:
    """Return the best trials; of several seeds mean and worst."""
    columns = (">mean", ">worst") if plan.search.seeds > 1 else ()
    shown = Table(
        [">trial", "state", ">score", *columns, *(f">{p.name}" for p in plan.space), ">time", "reason"]
    )
    for trial in ended(study)[:_SHOWN]:
        row = _row(trial)
        scores = [_number(row[name.removeprefix(">")]) for name in columns]
        values = [spelled(trial.params.get(parameter.name, "")) for parameter in plan.space]
        score = _number(row["score"])
        shown.add(
            str(trial.number), row["state"], score, *scores, *values, f"{row['seconds']:.0f} s", row["reason"]
        )
    return shown


def _row(trial: FrozenTrial) -> dict[str, Any]:
    seeds = {
        name.removeprefix(SEED): found for name, found in trial.user_attrs.items() if name.startswith(SEED)
    }
    cells = dict.fromkeys(cell for found in seeds.values() for cell in found["returns"])
    value, scores = _value(trial), [found["score"] for found in seeds.values()]
    return {
        "trial": trial.number,
        "state": _NAMES[trial.state],
        "score": value if math.isfinite(value) else None,
        "mean": float(np.mean(scores)) if scores else None,
        "worst": min(scores, default=None),
        "values": trial.params,
        "scores": {seed: found["score"] for seed, found in seeds.items()},
        "returns": {c: float(np.mean([found["returns"][c] for found in seeds.values()])) for c in cells},
        "seconds": trial.user_attrs.get(SECONDS, 0.0),
        "reason": trial.user_attrs.get(REASON, ""),
    }


def _value(trial: FrozenTrial) -> float:
    """Return the score of a trial, of one that was pruned its last evaluation; none is minus infinity."""
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        return trial.value
    last = trial.intermediate_values.get(max(trial.intermediate_values, default=0))
    return -math.inf if last is None or trial.state == TrialState.FAIL else last


def describe(trial: FrozenTrial) -> str:
    """Return in a few words how a trial ended."""
    row = _row(trial)
    score = "" if row["score"] is None else f", score {row['score']:.3f}"
    reason = f": {row['reason']}" if row["reason"] else ""
    return f"{row['state']}{score} in {row['seconds']:.0f} s{reason}"


def spelled(value: Any) -> str:
    """Return a value to show."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
