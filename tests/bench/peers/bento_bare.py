"""A BentoML handler that returns a constant, a floor of the framework: `bentoml serve bento_bare:Bare`."""

from typing import Any

import bentoml
from answers import CONSTANT


@bentoml.service(workers=1)
class Bare:
    @bentoml.api
    async def predict(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        return CONSTANT
