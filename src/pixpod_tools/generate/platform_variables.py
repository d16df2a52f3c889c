"""Variables of RunPod and Hugging Face, and the programs that read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Program(StrEnum):
    """Programs that read variables. Other programs are configured by options only."""

    WORKER = "worker"
    DEPLOY = "scripts/deploy"
    EMULATOR = "runpod-emulator"
    BENCH = "scripts/emulator_bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformVariable:
    """A variable of RunPod or Hugging Face, which no variable of ours replaces."""

    meaning: str
    read_by: tuple[Program, ...]


PLATFORM_VARIABLES: Mapping[str, PlatformVariable] = {
    "HF_TOKEN": PlatformVariable(
        meaning="Token of the model hub, for gated models.", read_by=(Program.WORKER,)
    ),
    "RUNPOD_POD_ID": PlatformVariable(
        meaning="Id of the worker, set by the platform. Not set: `local`.",
        read_by=(Program.WORKER, Program.BENCH),
    ),
    "RUNPOD_WEBHOOK_GET_JOB": PlatformVariable(
        meaning="Address of jobs, set by the platform. The worker reads only whether it is set.",
        read_by=(Program.WORKER, Program.BENCH),
    ),
    "RUNPOD_REALTIME_PORT": PlatformVariable(
        meaning="Port for jobs, set by the platform. The worker reads only whether it is set.",
        read_by=(Program.WORKER,),
    ),
    "RUNPOD_LOG_LEVEL": PlatformVariable(
        meaning="Log level of the SDK. The worker raises it to `INFO` at least.",
        read_by=(Program.WORKER,),
    ),
    "RUNPOD_DEBUG_LEVEL": PlatformVariable(
        meaning="The same, if `RUNPOD_LOG_LEVEL` is not set.",
        read_by=(Program.WORKER,),
    ),
    "RUNPOD_WEBHOOK_POST_OUTPUT": PlatformVariable(
        meaning="Address of results, set by the platform.", read_by=(Program.BENCH,)
    ),
    "RUNPOD_WEBHOOK_PING": PlatformVariable(
        meaning="Address of pings, set by the platform.", read_by=(Program.BENCH,)
    ),
    "RUNPOD_AI_API_KEY": PlatformVariable(
        meaning="Key of the worker, set by the platform.", read_by=(Program.BENCH,)
    ),
    "RUNPOD_API_KEY": PlatformVariable(
        meaning="API key of your account, unless `--api-key-file` names its file.",
        read_by=(Program.DEPLOY,),
    ),
    "RUNPOD_EMULATOR_API_KEY": PlatformVariable(
        meaning="API key that the emulator accepts, unless `--api-key` sets it.",
        read_by=(Program.EMULATOR,),
    ),
    "RUNPOD_INIT_TIMEOUT": PlatformVariable(
        meaning="Seconds that a worker may take to start, as in the endpoint's variables.",
        read_by=(Program.EMULATOR,),
    ),
}
"""Variables of RunPod and Hugging Face by name, besides those that `Variable.also_reads` lists."""
