"""Metadata of cross-validating estimators: from ``fit`` to splitter and scorer, from ``score`` to the scorer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sklearn import get_config
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing

from softgrad.sklearn._parameters import check_routed
from softgrad.sklearn._scoring import scorer_of

if TYPE_CHECKING:
    from softgrad.sklearn._fit_data import FitData

__all__ = ["routed", "router_of", "score_by"]


def router_of(estimator: Any, scoring: Any) -> MetadataRouter:
    """The router of an estimator with ``cv``, and of its scorer if it has one."""
    from sklearn.metrics import get_scorer
    from sklearn.model_selection import check_cv

    router = MetadataRouter(owner=estimator).add_self_request(estimator)
    to_split = MethodMapping().add(caller="fit", callee="split")
    to_score = MethodMapping().add(caller="fit", callee="score").add(caller="score", callee="score")
    router.add(splitter=check_cv(estimator.cv, classifier=True), method_mapping=to_split)
    if scoring is not None:
        router.add(scorer=get_scorer(scoring), method_mapping=to_score)
    return router


def routed(
    estimator: Any, scoring: Any, data: FitData, sample_weight: Any, groups: Any, params: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the splitter and of the scorer: with scikit-learn's metadata routing, what each requests.

    Without ``scoring`` there is no scorer to ask, and ``sample_weight`` weighs the scores.
    """
    check_routed(params, "fit")
    to_splitter = {} if groups is None else {"groups": groups}
    to_scorer = {} if sample_weight is None else {"sample_weight": sample_weight}
    if get_config()["enable_metadata_routing"]:
        found = process_routing(estimator, "fit", **to_splitter, **to_scorer, **params)
        to_splitter = dict(found.splitter.split)
        to_scorer = to_scorer if scoring is None else dict(found.scorer.score)
    if "sample_weight" in to_scorer:
        to_scorer["sample_weight"] = data.sample_weight  # validated
    return to_splitter, to_scorer


def score_by(estimator: Any, scoring: Any, X: Any, y: Any, metadata: dict[str, Any]) -> float:
    """The score of a fitted estimator, with the metadata that the scorer requests."""
    if get_config()["enable_metadata_routing"]:
        metadata = dict(process_routing(estimator, "score", **metadata).scorer.score)
    return float(scorer_of(scoring, estimator.classes_)(estimator, X, y, **metadata))
