"""The metrics of requests that BentoML's own layers never see."""

import prometheus_client
import pytest

from service.request_metrics import observe

BOUNDS = (0.001, 0.01, 0.1)


@pytest.mark.parametrize("values", [[], [0.5], [0.001, 0.0011, 0.01, 0.05, 0.1, 0.2, 7.0]])
def test_many_observations_in_one_go_are_as_many_one_by_one(values):
    registry = prometheus_client.CollectorRegistry()
    one_by_one, together = (prometheus_client.Histogram(name, name, buckets=BOUNDS, registry=registry)
                            for name in ("single", "many"))
    for value in values:
        one_by_one.observe(value)
    observe(together, values)
    found = {name: {(sample.name.removeprefix(name), sample.labels.get("le")): sample.value
                    for sample in metric.collect()[0].samples if not sample.name.endswith("_created")}
             for name, metric in (("single", one_by_one), ("many", together))}
    assert found["many"] == pytest.approx(found["single"]) and found["many"]["_count", None] == len(values)
