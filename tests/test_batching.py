"""The queue in front of the model: bounded, fair, and deaf to callers who left."""

import asyncio
from types import SimpleNamespace

import pytest

from contracts.core.errors import ClientDisconnected, Overloaded
from service.batching import Batcher
from service.limits import MAX_BATCH, MAX_WAITING, MAX_WAITING_BYTES


class Doubler:
    """A model that doubles numbers and remembers how many it was given at a time."""

    def __init__(self):
        self.turns = []

    def __call__(self, records):
        self.turns.append(len(records))
        return [2 * record for record in records]


def test_what_arrives_in_one_turn_is_scored_in_one():
    score = Doubler()

    async def calls():
        queue = Batcher(score)
        return await asyncio.gather(*(queue.answers([number, -number], 1) for number in range(100)))

    assert asyncio.run(calls()) == [[2 * number, -2 * number] for number in range(100)]
    assert score.turns == [200]


def test_a_large_request_is_scored_in_parts_and_answered_whole():
    score = Doubler()

    async def calls():
        queue = Batcher(score)
        return await asyncio.gather(queue.answers([1], 1), queue.answers(list(range(2500)), 1),
                                    queue.answers([7], 1))

    assert asyncio.run(calls()) == [[2], [2 * number for number in range(2500)], [14]]
    assert score.turns == [MAX_BATCH] * 4 + [2502 - 4 * MAX_BATCH]


@pytest.mark.parametrize(("waiting", "size", "more"),
                         [(MAX_WAITING - 1, 1, 1), (MAX_WAITING, 1, None), (1, 1, MAX_WAITING_BYTES - 1),
                          (1, 1, MAX_WAITING_BYTES), (0, 1, 10 * MAX_WAITING_BYTES)])
def test_both_sides_of_what_may_wait(waiting, size, more):
    fits = waiting < MAX_WAITING and (not waiting or size + (more or 0) <= MAX_WAITING_BYTES)

    async def calls():
        queue = Batcher(Doubler())
        asked = [queue.answers([1], size) for _ in range(waiting)]
        if fits:
            queue.admit(more)
        else:
            with pytest.raises(Overloaded):
                queue.admit(more or 1)
        await asyncio.gather(*asked)
        queue.admit(MAX_WAITING_BYTES)  # what waited is answered: there is room again

    asyncio.run(calls())


def test_who_hung_up_is_not_scored():
    score = Doubler()
    here, gone = SimpleNamespace(disconnected=False), SimpleNamespace(disconnected=True)

    async def calls():
        queue = Batcher(score)
        return await asyncio.gather(*(queue.answers([1], 1, caller) for caller in (here, gone, None)),
                                    return_exceptions=True)

    first, second, third = asyncio.run(calls())
    assert first == third == [2] and isinstance(second, ClientDisconnected) and score.turns == [2]


def test_who_hangs_up_in_the_middle_is_scored_no_further():
    score, caller = Doubler(), SimpleNamespace(disconnected=False)

    async def calls():
        queue = Batcher(lambda records: (setattr(caller, "disconnected", True), score(records))[1])
        large = queue.answers(list(range(10 * MAX_BATCH)), 1, caller)
        with pytest.raises(ClientDisconnected):
            await large
        assert await queue.answers([1], 1) == [2]

    asyncio.run(calls())
    assert score.turns == [MAX_BATCH, 1]


def test_a_record_that_cannot_be_scored_fails_its_request_alone():
    def score(records):
        if 13 in records:
            raise OverflowError
        return records

    async def calls():
        queue = Batcher(score)
        large = [1] * (2 * MAX_BATCH) + [13] + [1] * MAX_BATCH
        return await asyncio.gather(queue.answers([5], 1), queue.answers(large, 1), queue.answers([6], 1),
                                    return_exceptions=True)

    first, guilty, last = asyncio.run(calls())
    assert first == [5] and last == [6] and isinstance(guilty, OverflowError)
