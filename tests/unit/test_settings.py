"""Settings from the environment: values, refusals and masked secrets."""

from dataclasses import FrozenInstanceError, asdict
from pathlib import Path

import pytest
from pydantic import SecretStr
from support.factories import make_settings

from pixpod.errors import InvalidSettings
from pixpod.families import Precision
from pixpod.job import Delivery
from pixpod.outputs.storage import clean_prefix
from pixpod.settings import ALL_MODELS, SOURCE_WEIGHTS_DIR, Settings, keep_sdk_quiet

S3 = {
    "PIXPOD_S3_BUCKET": "pictures",
    "PIXPOD_S3_ACCESS_KEY_ID": "id",
    "PIXPOD_S3_SECRET_ACCESS_KEY": "hidden",
}
RUNPOD_S3 = {"BUCKET_ACCESS_KEY_ID": "id", "BUCKET_SECRET_ACCESS_KEY": "hidden"}
WEBHOOK = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_WEBHOOK = "whsec_" + "A" * 32
PRODUCTION = {"RUNPOD_WEBHOOK_GET_JOB": "https://api.runpod.ai/v2/x/job-take/y"}


def s3(**env):
    found = make_settings(**S3 | env).s3
    assert found is not None
    return found


def runpod_s3(url, **env):
    found = make_settings(BUCKET_ENDPOINT_URL=url, **RUNPOD_S3, **env).s3
    assert found is not None
    return found


def test_opened_targets_are_read():
    opened = make_settings(
        PIXPOD_ALLOW_TARGETS="write:minio.internal:9000, webhook:127.0.0.1:5000, ::1,[fd00::/8]:80"
    ).targets.opened
    assert [str(entry) for entry in opened] == [
        "write:minio.internal:9000",
        "webhook:127.0.0.1:5000",
        "read:[::1]",
        "read:[fd00::/8]:80",
    ]


@pytest.mark.parametrize(
    ("environ", "is_shown"),
    [
        ({}, True),
        ({"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:8000/v2/x/job-take/y"}, True),
        (PRODUCTION, False),
        ({"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1.example.org/v2"}, False),
        ({"RUNPOD_REALTIME_PORT": "8000"}, False),
    ],
)
def test_setting_that_opens_a_target_is_shown_at_a_desk_and_under_the_emulator(environ, is_shown):
    assert make_settings(**environ).targets.shows_setting is is_shown


def test_empty_environment_gives_the_defaults():
    settings = make_settings()
    assert settings.weights_dir == SOURCE_WEIGHTS_DIR
    assert settings.models is settings.catalog_file is settings.s3 is None
    assert settings.usd_per_gpu_second is None
    assert settings.accepted_licences == frozenset()
    assert settings.precisions == {}
    assert settings.device == "auto"
    assert settings.output_dir == Path("images")
    assert settings.max_reply_bytes == 10_000_000
    assert settings.worker_id == "local"
    assert settings.log_level == "INFO"
    assert not settings.preload
    assert settings.max_concurrency is settings.memory_limit_gb is None
    assert settings.refresh_after_images == 500
    assert settings.marks_ai and settings.has_prompts_in_files
    assert settings.deliveries == (Delivery.DIRECTORY, Delivery.INLINE)


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("PIXPOD_WEIGHTS_DIR", "/models", "weights_dir", Path("/models")),
        ("PIXPOD_MODELS", "flux-dev, sdxl,", "models", ("flux-dev", "sdxl")),
        ("PIXPOD_MODELS", " , ", "models", ()),
        ("PIXPOD_CATALOG", "/etc/models.toml", "catalog_file", Path("/etc/models.toml")),
        ("PIXPOD_ACCEPT_LICENCES", "a,b", "accepted_licences", frozenset({"a", "b"})),
        ("PIXPOD_DEVICE", "cpu", "device", "cpu"),
        ("PIXPOD_PRECISION", "float32", "precisions", {ALL_MODELS: Precision.FLOAT32}),
        (
            "PIXPOD_PRECISION",
            "bfloat16, flux-dev = float8_dynamic",
            "precisions",
            {ALL_MODELS: Precision.BFLOAT16, "flux-dev": Precision.FLOAT8_DYNAMIC},
        ),
        ("PIXPOD_PRELOAD", "true", "preload", True),
        ("PIXPOD_BATCHING", "false", "is_batching", False),
        ("PIXPOD_MAX_CONCURRENCY", "auto", "max_concurrency", None),
        ("PIXPOD_MAX_CONCURRENCY", "3", "max_concurrency", 3),
        ("PIXPOD_REFRESH_AFTER_IMAGES", "0", "refresh_after_images", 0),
        ("PIXPOD_MAX_JOB_S", "60", "max_job_s", 60),
        ("PIXPOD_COMPILE", "false", "is_compiling", False),
        ("PIXPOD_COMPILED_DIR", "/compiled", "compiled_dir", Path("/compiled")),
        ("PIXPOD_WEIGHTS_DIR", "/models", "compiled_dir", Path("/models/compiled")),
        ("PIXPOD_TRUST_VOLUME_CODE", "true", "is_volume_code_trusted", True),
        ("PIXPOD_MEMORY_LIMIT_GB", "23.5", "memory_limit_gb", 23.5),
        ("PIXPOD_PROMPT_CACHE_MB", "0", "prompt_cache_bytes", 0),
        ("PIXPOD_PROMPT_CACHE_MB", "1000", "prompt_cache_bytes", 1_000_000_000),
        ("PIXPOD_DELIVERY_FALLBACK", "none", "falls_back", False),
        ("PIXPOD_OUTPUT_DIR", "out", "output_dir", Path("out")),
        ("PIXPOD_KEY_SECRET", "hidden", "key_secret", SecretStr("hidden")),
        ("PIXPOD_WEBHOOK_SECRETS", WEBHOOK, "webhook_secrets", (SecretStr(WEBHOOK),)),
        (
            "PIXPOD_WEBHOOK_SECRETS",
            f"{OTHER_WEBHOOK}, {WEBHOOK}",
            "webhook_secrets",
            (SecretStr(OTHER_WEBHOOK), SecretStr(WEBHOOK)),
        ),
        ("PIXPOD_MAX_REPLY_BYTES", "2000", "max_reply_bytes", 2_000),
        ("PIXPOD_MARK_AI", "false", "marks_ai", False),
        ("PIXPOD_PROMPTS_IN_FILES", "false", "has_prompts_in_files", False),
        ("PIXPOD_USD_PER_GPU_SECOND", "0.00116", "usd_per_gpu_second", 0.00116),
        ("PIXPOD_USD_PER_GPU_SECOND", "1e-4", "usd_per_gpu_second", 1e-4),
        ("PIXPOD_USD_PER_GPU_SECOND", "0", "usd_per_gpu_second", 0.0),
        ("RUNPOD_POD_ID", "pod-1", "worker_id", "pod-1"),
        ("PIXPOD_LOG_LEVEL", "ERROR", "log_level", "ERROR"),
        ("PIXPOD_DEVICE", "  ", "device", "auto"),
    ],
)
def test_variable_is_read(name, value, field, expected):
    assert getattr(make_settings(**{name: value}), field) == expected


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("PIXPOD_DEVICE", "gpu", "auto, cuda, cpu"),
        ("PIXPOD_PRECISION", "float8", "float8_dynamic"),
        ("PIXPOD_PRECISION", "flux-dev=", "float8_dynamic"),
        ("PIXPOD_PRECISION", "float32,float16", "one entry per model"),
        ("PIXPOD_PRECISION", "sdxl=float32,sdxl=float16", "one entry per model"),
        ("PIXPOD_PRELOAD", "yes", "true, false"),
        ("PIXPOD_BATCHING", "on", "true, false"),
        ("PIXPOD_MAX_CONCURRENCY", "0", "1 to 64"),
        ("PIXPOD_MAX_CONCURRENCY", "many", "a whole number"),
        ("PIXPOD_REFRESH_AFTER_IMAGES", "-1", "0 to 1000000"),
        ("PIXPOD_MAX_JOB_S", "0", "1 to 86400"),
        ("PIXPOD_COMPILE", "auto", "true, false"),
        ("PIXPOD_TRUST_VOLUME_CODE", "yes", "true, false"),
        (
            "PIXPOD_ALLOW_TARGETS",
            "minio,http://minio",
            "HOST-or-NETWORK[:PORT], got 'minio,http://minio'",
        ),
        ("PIXPOD_ALLOW_TARGETS", "*.example.org", "comma-separated [read:|write:|webhook:]"),
        ("PIXPOD_ALLOW_TARGETS", "minio:0", "a port from 1 to 65535, got 'minio:0'"),
        ("PIXPOD_ALLOW_TARGETS", "put:minio:9000", "comma-separated [read:|write:|webhook:]"),
        ("PIXPOD_ALLOW_TARGETS", "10.1.0.0/8", "a network such as 10.0.0.0/8"),
        ("PIXPOD_ALLOW_TARGETS", "169.254.0.0/16", "the literal address of a link-local"),
        ("PIXPOD_MEMORY_LIMIT_GB", "0", "GiB above 0"),
        ("PIXPOD_MEMORY_LIMIT_GB", "24GB", "GiB above 0"),
        ("PIXPOD_PROMPT_CACHE_MB", "70000", "0 to 65536"),
        ("PIXPOD_DELIVERY", "s3", "auto, directory, inline"),
        ("PIXPOD_DELIVERY", "put", "auto, directory, inline"),
        ("PIXPOD_DELIVERY_FALLBACK", "false", "one of auto, none"),
        ("PIXPOD_WEBHOOK_SECRETS", WEBHOOK.removeprefix("whsec_"), "one or two of whsec_"),
        ("PIXPOD_WEBHOOK_SECRETS", "whsec_c2hvcnQ=", "24 to 64 bytes in base64"),
        ("PIXPOD_WEBHOOK_SECRETS", "whsec_" + "A" * 88, "24 to 64 bytes in base64"),
        ("PIXPOD_WEBHOOK_SECRETS", WEBHOOK + "$", "24 to 64 bytes in base64"),
        ("PIXPOD_WEBHOOK_SECRETS", ",".join([WEBHOOK] * 3), "one or two of whsec_"),
        ("PIXPOD_MAX_REPLY_BYTES", "10MB", "a whole number"),
        ("PIXPOD_MAX_REPLY_BYTES", "1_000_000", "a whole number"),
        ("PIXPOD_MAX_REPLY_BYTES", "9" * 5_000, "a whole number"),
        ("PIXPOD_MAX_REPLY_BYTES", "999", "1000 to 100000000"),
        ("PIXPOD_MAX_REPLY_BYTES", "100000001", "1000 to 100000000"),
        ("PIXPOD_MARK_AI", "no", "true, false"),
        ("PIXPOD_PROMPTS_IN_FILES", "0", "true, false"),
        ("PIXPOD_USD_PER_GPU_SECOND", "cheap", "US dollars per second"),
        ("PIXPOD_USD_PER_GPU_SECOND", "nan", "US dollars per second"),
        ("PIXPOD_USD_PER_GPU_SECOND", "-0.1", "US dollars per second"),
        ("PIXPOD_USD_PER_GPU_SECOND", "4.18", "US dollars per second"),
        ("PIXPOD_USD_PER_GPU_SECOND", "1.2.3", "US dollars per second"),
        ("PIXPOD_LOG_LEVEL", "DEBUG", "INFO, WARNING, ERROR"),
        ("PIXPOD_S3_ENDPOINT_URL", "s3.example.org", "an http or https address"),
        ("PIXPOD_S3_ENDPOINT_URL", "https://", "an http or https address"),
        ("PIXPOD_S3_ENDPOINT_URL", "http://[::1", "an http or https address"),
        ("PIXPOD_S3_ENDPOINT_URL", "https://s3.example.org", "PIXPOD_S3_BUCKET"),
        ("BUCKET_ENDPOINT_URL", "ftp://x/bucket", "an http or https address"),
        ("BUCKET_ENDPOINT_URL", "https://s3.example.org", "PIXPOD_S3_BUCKET"),
        ("BUCKET_ENDPOINT_URL", "https://s3.example.org/bucket/folder", "bucket's name only"),
        ("AWS_ENDPOINT_URL", "localhost:9000", "an http or https address"),
        ("AWS_ENDPOINT_URL_S3", "localhost:9000", "an http or https address"),
    ],
)
def test_bad_value_names_its_variable_and_what_is_accepted(name, value, accepted):
    with pytest.raises(InvalidSettings, match=name) as caught:
        make_settings(**{name: value})
    assert accepted in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("PIXPOD_S3_PREFIX", "../other", "other than"),
        ("PIXPOD_S3_PREFIX", "/images", "other than"),
        ("PIXPOD_S3_PREFIX", "a b", "A-Z"),
        ("PIXPOD_S3_PUBLIC_BASE_URL", "cdn.example.org", "an http or https address"),
        ("PIXPOD_S3_LINK_LIFETIME_S", "59", "60 to 604800"),
        ("PIXPOD_S3_LINK_LIFETIME_S", "604801", "60 to 604800"),
        ("PIXPOD_S3_CHECKSUMS", "never", "when_required, when_supported"),
        ("PIXPOD_S3_ADDRESSING_STYLE", "host", "auto, path, virtual"),
    ],
)
def test_bad_s3_value_names_its_variable_and_what_is_accepted(name, value, accepted):
    with pytest.raises(InvalidSettings, match=name) as caught:
        s3(**{name: value})
    assert accepted in str(caught.value)


def test_error_hides_credentials_of_an_address():
    with pytest.raises(InvalidSettings) as caught:
        make_settings(BUCKET_ENDPOINT_URL="https://me:hidden@s3.example.org/bucket")
    assert "hidden" not in str(caught.value)
    assert "BUCKET_ENDPOINT_URL" in str(caught.value)


# --- S3 ------------------------------------------------------------------------------------


def test_s3_defaults():
    found = s3()
    assert (found.bucket, found.endpoint_url, found.region) == ("pictures", None, "us-east-1")
    assert (found.prefix, found.public_base_url, found.link_lifetime_s) == ("", None, 86_400)
    assert (found.checksums, found.addressing_style) == ("when_required", "auto")
    assert (found.access_key_id, found.secret_access_key) == ("id", SecretStr("hidden"))
    assert found.session_token is None


def test_s3_choices_are_read():
    found = s3(
        PIXPOD_S3_ENDPOINT_URL="http://localhost:9000/",
        PIXPOD_S3_REGION="fr-par",
        PIXPOD_S3_PREFIX="images/",
        PIXPOD_S3_PUBLIC_BASE_URL="https://cdn.example.org/",
        PIXPOD_S3_LINK_LIFETIME_S="604800",
        PIXPOD_S3_CHECKSUMS="when_supported",
        PIXPOD_S3_ADDRESSING_STYLE="path",
    )
    assert found.endpoint_url == "http://localhost:9000"
    assert found.region == "fr-par"
    assert found.prefix == "images"
    assert found.public_base_url == "https://cdn.example.org"
    assert found.link_lifetime_s == 604_800
    assert found.checksums == "when_supported"
    assert found.addressing_style == "path"


@pytest.mark.parametrize(
    ("url", "bucket", "endpoint_url", "region"),
    [
        ("https://s3.example.org/pics", "pics", "https://s3.example.org", "us-east-1"),
        ("https://s3.example.org/pics/", "pics", "https://s3.example.org", "us-east-1"),
        ("http://127.0.0.1:9000/pics", "pics", "http://127.0.0.1:9000", "us-east-1"),
        (
            "https://pics.s3.eu-west-1.amazonaws.com",
            "pics",
            "https://s3.eu-west-1.amazonaws.com",
            "eu-west-1",
        ),
        (
            "https://my.pics.s3.us-gov-west-1.amazonaws.com/",
            "my.pics",
            "https://s3.us-gov-west-1.amazonaws.com",
            "us-gov-west-1",
        ),
        ("https://pics.s3.amazonaws.com", "pics", "https://s3.amazonaws.com", "us-east-1"),
        (
            "https://s3.eu-west-1.amazonaws.com/pics",
            "pics",
            "https://s3.eu-west-1.amazonaws.com",
            "eu-west-1",
        ),
        (
            "https://pics.s3.us-west-004.backblazeb2.com",
            "pics",
            "https://s3.us-west-004.backblazeb2.com",
            "us-west-004",
        ),
        (
            "https://pics.nyc3.digitaloceanspaces.com",
            "pics",
            "https://nyc3.digitaloceanspaces.com",
            "nyc3",
        ),
        (
            "https://account.r2.cloudflarestorage.com/pics",
            "pics",
            "https://account.r2.cloudflarestorage.com",
            "us-east-1",
        ),
    ],
)
def test_runpods_address_carries_the_bucket(url, bucket, endpoint_url, region):
    found = runpod_s3(url)
    assert (found.bucket, found.endpoint_url, found.region) == (bucket, endpoint_url, region)
    assert found.secret_access_key == SecretStr("hidden")


def test_own_bucket_wins_over_that_in_runpods_address():
    found = runpod_s3("https://s3.example.org/other", PIXPOD_S3_BUCKET="pictures")
    assert (found.bucket, found.endpoint_url) == ("pictures", "https://s3.example.org")


def test_own_names_win_over_runpods_and_those_over_aws():
    aws = {"AWS_ACCESS_KEY_ID": "aws", "AWS_SECRET_ACCESS_KEY": "aws", "AWS_REGION": "eu-west-3"}
    runpod = {"BUCKET_ACCESS_KEY_ID": "pod", "BUCKET_SECRET_ACCESS_KEY": "pod"}
    bucket = {"PIXPOD_S3_BUCKET": "pictures", "PIXPOD_KEY_SECRET": "x"}
    ours = S3 | {"PIXPOD_S3_REGION": "eu-west-1"}
    found = [make_settings(**bucket | env).s3 for env in (aws, aws | runpod, aws | runpod | ours)]
    assert [each and each.access_key_id for each in found] == ["aws", "pod", "id"]
    assert [each and each.region for each in found] == ["eu-west-3", "eu-west-3", "eu-west-1"]


def test_session_token_goes_with_the_keys_of_aws_only():
    aws = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c"}
    assert s3(**aws).session_token is None
    found = make_settings(PIXPOD_S3_BUCKET="pictures", **aws).s3
    assert found and found.session_token == SecretStr("c")


def test_endpoint_of_aws_is_read_and_the_special_one_first():
    assert s3(AWS_ENDPOINT_URL="http://a").endpoint_url == "http://a"
    assert (
        s3(AWS_ENDPOINT_URL="http://a", AWS_ENDPOINT_URL_S3="http://b").endpoint_url == "http://b"
    )
    assert (
        s3(PIXPOD_S3_ENDPOINT_URL="http://c", AWS_ENDPOINT_URL="http://a").endpoint_url
        == "http://c"
    )


@pytest.mark.parametrize(
    "half", ["PIXPOD_S3_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"]
)
def test_half_a_pair_of_keys_is_refused(half):
    with pytest.raises(InvalidSettings, match=f"expected both or neither, got only {half}$"):
        make_settings(PIXPOD_S3_BUCKET="pictures", **{half: "x"})


def test_halves_of_different_pairs_do_not_mix():
    with pytest.raises(InvalidSettings, match=r"got only PIXPOD_S3_ACCESS_KEY_ID$"):
        make_settings(
            PIXPOD_S3_BUCKET="pictures", PIXPOD_S3_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="y"
        )


# --- what makes keys unguessable -----------------------------------------------------------


def test_key_secret_is_the_same_on_all_workers_and_not_the_bucket_secret():
    first, second = make_settings(**S3), make_settings(**S3, RUNPOD_POD_ID="other")
    assert first.key_secret == second.key_secret
    assert "hidden" not in first.key_secret.get_secret_value()
    assert (
        first.key_secret != make_settings(**S3 | {"PIXPOD_S3_SECRET_ACCESS_KEY": "new"}).key_secret
    )


def test_own_key_secret_wins():
    assert make_settings(**S3, PIXPOD_KEY_SECRET="own").key_secret == SecretStr("own")


def test_s3_without_keys_needs_a_key_secret():
    with pytest.raises(InvalidSettings, match="PIXPOD_KEY_SECRET"):
        make_settings(PIXPOD_S3_BUCKET="pictures")
    settings = make_settings(PIXPOD_S3_BUCKET="pictures", PIXPOD_KEY_SECRET="own")
    assert settings.s3 and settings.s3.secret_access_key is None


# --- secrets -------------------------------------------------------------------------------


def test_secret_is_never_shown():
    secret = SecretStr("hidden")
    shown = (repr(secret), str(secret), f"{secret}", f"{secret!r:>20}", "%s" % secret)  # noqa: UP031
    assert all("hidden" not in text and "***" in text for text in (*shown, repr([secret])))
    assert secret.get_secret_value() == "hidden"


def test_settings_never_show_a_secret():
    env = {"PIXPOD_KEY_SECRET": "hidden", "AWS_SESSION_TOKEN": "hidden"}
    settings = make_settings(**S3 | env)
    assert "hidden" not in repr(settings)
    assert "hidden" not in str(settings)
    assert "hidden" not in repr(asdict(settings))


def test_secrets_compare_by_value_in_any_script():
    assert SecretStr("clé") == SecretStr("clé")
    assert hash(SecretStr("clé")) == hash(SecretStr("clé"))
    assert SecretStr("clé") != SecretStr("cle")
    assert SecretStr("a") != "a"


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        make_settings().device = "cuda"


# --- on the platform -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RUNPOD_WEBHOOK_GET_JOB", "RUNPOD_REALTIME_PORT"])
def test_platform_is_recognised(name):
    assert Settings.names_platform({name: "x"})
    assert make_settings(**{name: "x"}).preload
    assert not Settings.names_platform({name: ""})


def test_production_worker_preloads_and_writes_to_no_disk():
    settings = make_settings(**PRODUCTION)
    assert settings.preload
    assert settings.deliveries == (Delivery.INLINE,)
    assert not make_settings(**PRODUCTION, PIXPOD_PRELOAD="false").preload


def test_production_worker_writes_to_a_disk_that_is_named():
    settings = make_settings(**PRODUCTION, PIXPOD_OUTPUT_DIR="/volume")
    assert settings.deliveries[0] is Delivery.DIRECTORY


def test_bucket_is_the_default_delivery_wherever_there_is_one():
    for env in (S3, S3 | PRODUCTION):
        assert make_settings(**env).deliveries[0] is Delivery.S3


@pytest.mark.parametrize("delivery", ["s3", "directory", "inline"])
def test_default_delivery_may_be_chosen_and_keeps_the_others(delivery):
    settings = make_settings(**S3, PIXPOD_DELIVERY=delivery)
    assert settings.deliveries[0] == delivery
    assert set(settings.deliveries) == {Delivery.S3, Delivery.DIRECTORY, Delivery.INLINE}


def test_production_worker_refuses_a_directory_nobody_named():
    with pytest.raises(InvalidSettings, match=r"PIXPOD_DELIVERY.*auto, inline"):
        make_settings(**PRODUCTION, PIXPOD_DELIVERY="directory")


@pytest.mark.parametrize("level", [None, "", "DEBUG", "TRACE", "NOTSET", "nonsense", "0"])
def test_sdk_is_kept_from_logging_payloads(level):
    environ = {} if level is None else {"RUNPOD_LOG_LEVEL": level, "RUNPOD_DEBUG_LEVEL": level}
    keep_sdk_quiet(environ)
    assert environ == {"RUNPOD_LOG_LEVEL": "INFO", "RUNPOD_DEBUG_LEVEL": "INFO"}


@pytest.mark.parametrize("level", ["INFO", "WARN", "ERROR", "error"])
def test_sdk_may_be_quieter_still(level):
    environ = {"RUNPOD_LOG_LEVEL": level}
    keep_sdk_quiet(environ)
    assert environ["RUNPOD_LOG_LEVEL"] == level


@pytest.mark.parametrize("value", ["", "a", "a/b", "a.b/..c/d_-", "x" * 200])
def test_good_prefix_is_kept_without_its_last_slash(value):
    assert clean_prefix(value) == value
    assert clean_prefix(value + "/") == value


@pytest.mark.parametrize("value", ["/a", "a//b", "..", "a/..", "./a", "a b", "a\n", "é", "x" * 201])
def test_unsafe_prefix_is_refused(value):
    with pytest.raises(ValueError, match=r"^expected"):
        clean_prefix(value)


def test_refusal_of_webhook_secrets_shows_none():
    with pytest.raises(InvalidSettings) as caught:
        make_settings(PIXPOD_WEBHOOK_SECRETS="whsec_hidden")
    assert "hidden" not in str(caught.value)
    assert caught.value.__cause__ is None
