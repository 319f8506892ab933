"""The launch of vLLM, flag by flag."""

from __future__ import annotations

from pathlib import Path

import pytest
from preceptor_contracts.base_models import EMBEDDED_NAME, IDENTITY
from preceptor_contracts.errors import PrerequisiteError
from preceptor_engine.hardware import cpu_dtype, has_cpp_compiler
from preceptor_engine.launch import LORA_TARGET_MODULES, Launch, build_launch
from preceptor_engine.settings import EngineSettings
from preceptor_trainer.plan.servability import FP8_FLAG
from preceptor_trainer.recipes import LORA_MODULES
from pydantic import SecretStr, ValidationError

NO_FLAGS: frozenset[str] = frozenset()


def launch(
    tmp_path: Path,
    *,
    gpu: bool = False,
    flags: frozenset[str] = NO_FLAGS,
    compiles: bool = True,
    **settings: object,
) -> Launch:
    (tmp_path / EMBEDDED_NAME).mkdir(exist_ok=True)
    (tmp_path / EMBEDDED_NAME / IDENTITY).write_text('{"id": "x", "revision": "1"}')
    one = EngineSettings(_env_file=None, BASE_MODELS_DIR=tmp_path, **settings)  # type: ignore[arg-type]  # any value by name
    return build_launch(one, gpu=gpu, flags=flags, cores=[0, 1], compiles=compiles)


def flag(made: Launch, name: str) -> str:
    return made.argv[made.argv.index(name) + 1]


def test_loopback_our_base_name_and_immutable_defaults(tmp_path: Path) -> None:
    made = launch(tmp_path)
    assert flag(made, "--host") == "127.0.0.1"
    assert flag(made, "--served-model-name") == "base"
    assert flag(made, "--generation-config") == "vllm"
    assert flag(made, "--max-loras") == "2"
    assert "--enable-prefix-caching" in made.argv
    assert "lm_head" not in made.argv


def test_without_a_compiler_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch(tmp_path, compiles=False).env["TORCH_COMPILE_DISABLE"] == "1"
    assert "TORCH_COMPILE_DISABLE" not in launch(tmp_path).env
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not has_cpp_compiler()
    monkeypatch.setenv("CXX", "sh")
    assert has_cpp_compiler()


def test_adapters_may_use_the_layers_that_recipes_may() -> None:
    assert set(LORA_TARGET_MODULES) == set(LORA_MODULES)


def test_8_bit_weights_take_a_gpu_and_the_name_that_vllm_gives_them(tmp_path: Path) -> None:
    assert flag(launch(tmp_path, gpu=True, quantization="fp8"), "--quantization") == FP8_FLAG
    assert "--quantization" not in launch(tmp_path, gpu=True).argv
    with pytest.raises(PrerequisiteError, match="needs a GPU"):
        launch(tmp_path, quantization="fp8")


def test_dtype_follows_the_hardware(tmp_path: Path) -> None:
    assert flag(launch(tmp_path), "--dtype") == "float32"
    assert flag(launch(tmp_path, flags=frozenset({"avx512_bf16"})), "--dtype") == "bfloat16"
    assert flag(launch(tmp_path, gpu=True), "--dtype") == "auto"
    assert flag(launch(tmp_path, dtype="float32", flags=frozenset({"amx_bf16"})), "--dtype") == "float32"
    assert cpu_dtype(frozenset({"avx2", "avx512f"})) == "float32"


def test_key_is_in_the_environment_never_on_the_command_line(tmp_path: Path) -> None:
    made = launch(tmp_path, api_key=SecretStr("secret-key"))
    assert made.env["VLLM_API_KEY"] == "secret-key"
    assert not [word for word in made.argv if "secret-key" in word]


def test_two_cores_are_both_given(tmp_path: Path) -> None:
    assert launch(tmp_path).env["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in launch(tmp_path, gpu=True).env


def test_missing_base_model_names_the_command(tmp_path: Path) -> None:
    settings = EngineSettings(_env_file=None, BASE_MODELS_DIR=tmp_path / "none")
    with pytest.raises(PrerequisiteError, match="make setup"):
        build_launch(settings, gpu=False, flags=NO_FLAGS, cores=[0], compiles=True)


def test_other_base_models_may_use_the_hub(tmp_path: Path) -> None:
    made = launch(tmp_path, BASE_MODEL="Qwen/Qwen2.5-1.5B-Instruct")
    assert flag(made, "--model") == "Qwen/Qwen2.5-1.5B-Instruct"
    assert "HF_HUB_OFFLINE" not in made.env


def test_a_commit_behind_the_name_pins_weights_and_chat_template(tmp_path: Path) -> None:
    made = launch(tmp_path, BASE_MODEL="Qwen/Qwen2.5-1.5B-Instruct@989aa79")
    named = [flag(made, name) for name in ("--model", "--revision", "--tokenizer-revision")]
    assert named == ["Qwen/Qwen2.5-1.5B-Instruct", "989aa79", "989aa79"]
    assert "--revision" not in launch(tmp_path, BASE_MODEL="Qwen/Qwen2.5-1.5B-Instruct").argv


def test_a_folder_may_have_an_at_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "mine@home"
    folder.mkdir()
    made = launch(tmp_path, BASE_MODEL=str(folder))
    assert flag(made, "--model") == str(folder)
    assert "--revision" not in made.argv


def test_rank_that_vllm_refuses_is_refused_here(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        launch(tmp_path, max_lora_rank=24)
