"""Training speed, loss and memory beside plain TRL and LLaMA-Factory: `python -m bench.trainer`."""
