"""Results of a GPU benchmark; every figure is another one, so that a swapped column is seen."""

from pixpod_bench.gpu.results import LoadPoint, LoadRow, MemoryRow, Row, TestRun

ROW = Row(
    side="pixpod",
    model="flux-dev",
    precision="float8_dynamic",
    mode="compiled",
    size_px=1024,
    batch_size=1,
    num_inference_steps=28,
    text_tokens=512,
    has_guidance=True,
    repeats=5,
    float8_layers=494,
    build_ms=31_000.0,
    first_ms=41_500.0,
    text_encode_ms=21.5,
    denoise_ms=2_380.0,
    step_ms=85.25,
    decode_ms=61.75,
    total_ms=2_500.5,
    p95_ms=2_612.25,
    spread_percent=3.5,
    images_per_second=0.401,
    same_pixels=True,
    graphs=2,
    late_graphs=7,
    weights_bytes=23 * 2**30,
    peak_bytes=26 * 2**30,
    teraflop_per_s=872.0,
    floor_percent=57.0,
    warnings=("a warning",),
)
MEMORY = MemoryRow(
    models=("flux-dev float8_dynamic", "sdxl float16"),
    limit_gib=None,
    num_requests=200,
    num_images=300,
    seconds=61.5,
    onload_ms=2_300.0,
    num_onloads=17,
    allocated_bytes=30 * 2**30,
    reserved_bytes=33 * 2**30,
    driver_bytes=39_000_000_000,
    end_reserved_bytes=32 * 2**30,
    host_peak_bytes=12 * 2**30,
    stock_bytes=45 * 2**30,
    warnings=(),
)
LOAD = LoadRow(
    num_requests=40,
    capacity_per_s=2.0,
    stock_capacity_per_s=1.25,
    points=(
        LoadPoint(
            is_batching=True,
            load=0.8,
            requests_per_s=1.5,
            images_per_s=1.75,
            p50_s=0.61,
            p95_s=2.42,
            p99_s=3.23,
            busy_percent=81.0,
        ),
    ),
)
TESTS = TestRun(exit_code=0, summary="12 passed, 1 skipped in 80.00s")
