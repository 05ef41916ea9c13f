"""Settings: what is taken, from where, and the one line that a wrong one gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared import config
from shared.errors import ConfigError
from shared.masking import masked_for_log

NO_FILE: dict[str, str] = {}


def load_file(directory: Path, text: str, **environ: str) -> config.Settings:
    path = directory / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return config.load({"ORCH_CONFIG": str(path), **environ})


def test_nothing_configured_means_the_three_simulated_models_and_the_embedded_redis() -> None:
    settings = config.load(NO_FILE)
    assert [(model.name, model.port) for model in settings.registrations] == [
        ("tiny-llama-1b", 8080),
        ("bi-medix2", 8081),
        ("openins-llama3-8b", 8084),
    ]
    assert settings.simulates
    assert settings.redis.effective_url == "redis://127.0.0.1:6390/0"


def test_models_of_the_file_replace_the_simulated_ones(tmp_path: Path) -> None:
    settings = load_file(tmp_path, "models: [{name: mine, backend: vllm, url: 'http://10.0.0.2:8000'}]")
    assert [model.name for model in settings.registrations] == ["mine"]
    assert not settings.simulates


def test_an_empty_file_is_no_settings(tmp_path: Path) -> None:
    assert load_file(tmp_path, "# nothing yet\n") == config.load(NO_FILE)


def test_a_section_with_everything_commented_out_is_left_out(tmp_path: Path) -> None:
    assert load_file(tmp_path, "api:\n  # port: 9000\nmodels:\n") == config.load(NO_FILE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("api: {port: high}", ["api.port = 'high'", "integer"]),
        ("api: {port: 70000}", ["api.port = 70000", "less than or equal to 65535"]),
        ("api: {max_wait_s: 0}", ["api.max_wait_s = 0", "greater than 0"]),
        ("redis: {url: 'http://10.0.0.2'}", ["redis.url = 'http://10.0.0.2'", "rediss?|unix"]),
        ("redis: {namespace: 'a b'}", ["redis.namespace = 'a b'"]),
        ("gpu: {source: nvidia}", ["gpu.source = 'nvidia'", "'auto', 'nvml', 'simulated' or 'none'"]),
        ("gpu: {interval_s: 0.01}", ["gpu.interval_s = 0.01", "greater than or equal to 0.1"]),
        ("log: {level: LOUD}", ["log.level = 'LOUD'", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"]),
        ("memory_thresholds: {low: 0.9}", ["memory_thresholds", "low < normal < high < critical"]),
        (
            "memory_thresholds: {critical: 1.5}",
            ["memory_thresholds.critical = 1.5", "less than or equal to 1"],
        ),
        ("thermal_thresholds: {warning: 99}", ["thermal_thresholds", "normal < warning < throttling"]),
        ("models: [{name: a}]", ["models.0", "'a'", "'port' nor 'url'"]),
        (
            "models: [{name: a, port: 1, backend: ollama}]",
            ["models.0.backend = 'ollama'", "llama_cpp", "vllm"],
        ),
        ("models: [{port: 1}]", ["models.0.name", "required"]),
        ("models: [{name: a, port: 1}, {name: a, port: 2}]", ["models: a is registered twice"]),
        ("models: some", ["models = 'some'"]),
        ("api: 8000", ["api = 8000"]),
        ("jobs: {retention_s: 0.0001}", ["jobs.retention_s = 0.0001", "greater than or equal to 1"]),
        ("jobs: {retention_s: 1.0e+300}", ["jobs.retention_s", "less than or equal to"]),
        ("queue: {priority_step_s: .inf}", ["queue.priority_step_s = inf"]),
        ("gpu: {reserve_gb: .inf}", ["gpu.reserve_gb = inf", "finite"]),
        ("models: [{name: a, url: 'http://u:p@h:1'}]", ["models.0.url", "user or password"]),
    ],
)
def test_a_wrong_value_is_one_line_with_key_value_and_what_is_allowed(
    tmp_path: Path, text: str, said: list[str]
) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_file(tmp_path, text)
    message = str(refusal.value)
    assert message.startswith(str(tmp_path / "settings.yaml"))
    assert "\n" not in message
    for part in said:
        assert part in message


def test_every_wrong_key_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_file(tmp_path, "api: {port: 0}\nqueue: {bound: 0}")
    assert "api.port = 0" in str(refusal.value)
    assert "queue.bound = 0" in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ("rediss: {}", "rediss", "redis"),
        ("redis: {ulr: 'redis://10.0.0.2'}", "redis.ulr", "url"),
        ("models: [{name: a, port: 1, vram: 6}]", "models.0.vram", "vram_gb"),
        ("gpus: [{id: 0, reserve: 1}]", "gpus.0.reserve", "reserve_gb"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(
    tmp_path: Path, text: str, key: str, meant: str
) -> None:
    with pytest.raises(ConfigError, match=rf"unknown key '{key}': did you mean '{meant}'\?"):
        load_file(tmp_path, text)


def test_an_unknown_key_like_no_other_is_refused_with_those_known_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'log\.zzz': known here are level, format, dir"):
        load_file(tmp_path, "log: {zzz: 1}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("api: {port: 8000", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("- api\n- redis\n", "must be a mapping of sections"),
        ("just words", "must be a mapping of sections"),
    ],
)
def test_a_file_that_is_no_mapping_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refusal:
        load_file(tmp_path, text)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not YAML"):
        config.load({"ORCH_CONFIG": str(path)})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read"):
        config.load({"ORCH_CONFIG": str(tmp_path / "absent.yaml")})


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    text = "api: {port: 8001, host: 0.0.0.0}\nredis: {namespace: file}"
    settings = load_file(tmp_path, text, ORCH_API__PORT="8002", ORCH_REDIS__NAMESPACE="env")
    assert (settings.api.port, settings.api.host, settings.redis.namespace) == (8002, "0.0.0.0", "env")


def test_lists_come_from_the_environment_as_json() -> None:
    settings = config.load({"ORCH_MODELS": '[{"name": "a", "port": 9000, "agent_types": ["Chat"]}]'})
    assert [(model.name, model.port, model.agent_types) for model in settings.registrations] == [
        ("a", 9000, ("Chat",))
    ]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ORCH_API__PORT", "x", "environment: api.port = 'x'"),
        ("ORCH_API__PROT", "8000", "unknown key 'api.prot': did you mean 'port'?"),
        ("ORCH_RDEIS__URL", "redis://10.0.0.2", "unknown key 'rdeis': did you mean 'redis'?"),
        ("ORCH_MODELS", "[{broken", "models = '[{broken'"),
    ],
)
def test_a_wrong_variable_is_one_line(name: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        config.load({name: value})
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_variable_below_something_that_is_no_section_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ORCH_API__PORT: 'api' is not a section"):
        load_file(tmp_path, "api: 8000", ORCH_API__PORT="8001")


def test_names_of_host_and_process_are_no_settings() -> None:
    environ = {"ORCH_HOST_NAME": "box", "ORCH_INSTANCE": "router-2", "PATH": "/bin"}
    assert config.load(environ) == config.load(NO_FILE)
    assert config.host_name(environ) == "box"


def _refusal(directory: Path, text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load_file(directory, text)
    return str(refused.value)


def test_a_mapping_where_a_list_belongs_is_not_repeated(tmp_path: Path) -> None:
    said = _refusal(tmp_path, 'models: {q: {cmd: serve, env: ["HF_TOKEN=hf_secret"]}}')

    assert "models is a mapping with 1 keys: Input should be a valid list" in said
    assert "hf_secret" not in said


@pytest.mark.parametrize(
    "text",
    [
        f"api: {{port: {'a' * 40_000}}}",
        f"api: {{port: 0x{'f' * 40_000}}}",
        f"api: {{{'b' * 500}: 1}}",
        f"models: [{'{port: 1}, ' * 5000}]",
        f"redis: {{url: 'redis://:{'p' * 300}@host', namespace: 'http://me:{'p' * 300}@host'}}",
    ],
    ids=["text", "number", "key", "many", "password"],
)
def test_whatever_is_wrong_the_line_stays_short_and_tells_no_password(tmp_path: Path, text: str) -> None:
    said = _refusal(tmp_path, text)

    assert len(said) < 5000
    assert "ppp" not in said


def test_nested_aliases_are_refused_in_a_short_line(tmp_path: Path) -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    said = _refusal(tmp_path, "\n".join(["a0: &a0 [x]", *levels, "models: *a9"]))

    assert "is not YAML" in said
    assert "aliases stand for more than" in said
    assert len(said) < 500


def test_a_key_in_the_place_of_its_variables_name_is_refused_and_not_repeated(tmp_path: Path) -> None:
    said = _refusal(tmp_path, 'models: [{name: a, port: 1, api_key_env: "my-real-secret-key-123"}]')

    assert "models.0.api_key_env: must be the name of an environment variable" in said
    assert "my-real" not in said


def test_the_keys_and_the_password_that_settings_name_are_hidden_from_then_on(tmp_path: Path) -> None:
    load_file(
        tmp_path,
        "redis: {url: 'redis://me:a-long-password@host'}\nmodels: [{name: a, port: 1, api_key_env: MINE}]",
        MINE="plainbackendkey778",
    )

    assert masked_for_log("raw plainbackendkey778, a-long-password") == "raw ***, ***"
