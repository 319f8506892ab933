"""An adapter of noise: enough to see that the engine applies what it loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
from preceptor_contracts.base_models import EMBEDDED_NAME
from safetensors.numpy import save_file

from tests.stack import REPO


@pytest.fixture(scope="session")
def noise_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of rank 8 on every query and value projection of the embedded base model."""
    base = REPO / "data" / "base-models" / EMBEDDED_NAME
    shape = json.loads((base / "config.json").read_text())
    hidden = shape["hidden_size"]
    head = shape.get("head_dim") or hidden // shape["num_attention_heads"]
    outputs = {"q_proj": head * shape["num_attention_heads"], "v_proj": head * shape["num_key_value_heads"]}
    random = numpy.random.default_rng(7)
    weights = {}
    for layer in range(shape["num_hidden_layers"]):
        for module, width in outputs.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            weights[f"{prefix}.lora_A.weight"] = random.normal(0, 0.1, (8, hidden)).astype("float32")
            weights[f"{prefix}.lora_B.weight"] = random.normal(0, 0.1, (width, 8)).astype("float32")
    folder = tmp_path_factory.mktemp("noise")
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": list(outputs),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
