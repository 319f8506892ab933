"""The `README.md` beside an adapter's weights."""

from __future__ import annotations

from preceptor_contracts.domains import Domain

from preceptor_trainer.runs import RunSpec
from preceptor_trainer.train.training import Trained


def model_card(name: str, spec: RunSpec, domain: Domain, trained: Trained) -> str:
    """Tells what the adapter is, what it was trained on and how to ask it, as a Hugging Face model card."""
    recipe, metrics = spec.recipe, trained.metrics
    topics = ", ".join(f"{topic} ({count})" for topic, count in spec.dataset.topics.items())
    disclaimer = f"\n> {domain.disclaimer}\n" if domain.disclaimer else ""
    return f"""---
base_model: {spec.base_model.id}
library_name: peft
pipeline_tag: text-generation
tags:
- lora
- preceptor
---

# {name}

{domain.title}: {domain.description}
{disclaimer}
| | |
|---|---|
| base model | `{spec.base_model.id}`, revision `{spec.base_model.revision}` |
| training data | {spec.dataset.records} records, {spec.dataset.tokens} tokens, sha256 `{spec.dataset.sha256}` |
| topics | {topics} |
| recipe | `{recipe.name}`: {recipe.method}, rank {recipe.rank}, {recipe.dtype}, seed {spec.seed} |
| training | {metrics.steps} steps, loss {metrics.first_loss:.3f} to {metrics.final_loss:.3f} |
| run | `{spec.run_id}` |

Ask it as `{domain.name}:{name}` through Preceptor's gateway, which adds the system message that it was trained with.
`preceptor.json` holds all of this for machines; `reports/` holds its exams.
"""
