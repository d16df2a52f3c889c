"""Who waits is woken, also by what came while it looked."""

import asyncio

from runpod_emulator.wake import Wake

LONG_S = 30.0


def waits(wake, *, notify_after_look):
    """Whether somebody who has looked and then waits is woken before its time is over."""

    async def scenario():
        since = wake.next_event()
        if notify_after_look:
            wake.notify()
        waiting = asyncio.create_task(wake.wait(LONG_S, since))
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        waiting.cancel()
        return not done

    return asyncio.run(scenario())


def test_what_came_while_one_looked_is_not_missed():
    assert not waits(Wake(), notify_after_look=True)


def test_nobody_is_woken_by_nothing():
    assert waits(Wake(), notify_after_look=False)


def test_all_who_wait_are_woken_once():
    async def scenario():
        wake = Wake()
        waiting = [asyncio.create_task(wake.wait(LONG_S)) for _ in range(3)]
        await asyncio.sleep(0)
        wake.notify()
        await asyncio.wait_for(asyncio.gather(*waiting), LONG_S)
        again = asyncio.create_task(wake.wait(LONG_S))
        done, _ = await asyncio.wait([again], timeout=0.05)
        again.cancel()
        return bool(done)

    assert not asyncio.run(scenario()), "the next one waits for the next time"


def test_waiting_ends_with_its_time():
    asyncio.run(Wake().wait(0.01))
