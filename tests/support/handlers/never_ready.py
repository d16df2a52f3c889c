"""A worker that ends before it takes a job, in the way that `HOW` in its environment names."""

import os
import sys

WAYS = ("crash", "unfit", "bad_modifier")


def main():
    how = WAYS.index(os.environ["HOW"])
    if how == 0:
        sys.exit("no weights found")
    import runpod  # a crash is quicker without

    if how == 1:

        @runpod.serverless.register_fitness_check
        def weights_are_there():
            raise RuntimeError("no weights found")

    runpod.serverless.start(
        {"handler": lambda job: job["input"], "concurrency_modifier": lambda current: None}
    )


if __name__ == "__main__":
    main()
