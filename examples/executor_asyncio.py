"""Runs calls in other processes, and awaits them among the coroutines of an asyncio program."""

import asyncio

from daskbatch import BatchPoolExecutor


def count_primes(n):
    return sum(all(k % d for d in range(2, int(k**0.5) + 1)) for k in range(2, n))


async def main():
    loop = asyncio.get_running_loop()
    with BatchPoolExecutor(max_workers=2) as pool:
        calls = [loop.run_in_executor(pool, count_primes, n) for n in (100, 1000, 10_000)]
        print("primes below 100, 1000, 10000:", *await asyncio.gather(*calls))

        # The executor's own futures are awaitable.
        future = await pool.async_submit(count_primes, 20_000)
        print("below 20000:", await future)

        async for count in pool.async_map(count_primes, [[10, 20, 30]]):
            print("and", count)


asyncio.run(main())
