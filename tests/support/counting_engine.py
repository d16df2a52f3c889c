"""Counts the denoiser calls of a worker's engine."""


class CountingEngine:
    """Stands before an engine; `on_call` is called for each denoiser call."""

    def __init__(self, engine, on_call=lambda: None):
        self.num_calls = 0
        self._engine = engine
        self._on_call = on_call

    async def generate(self, request, on_step=None):
        def count(step, steps):
            self.num_calls += 1
            self._on_call()
            if on_step is not None:
                on_step(step, steps)

        return await self._engine.generate(request, count)

    def __getattr__(self, name):
        return getattr(self._engine, name)
