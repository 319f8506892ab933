"""Multiple choice on real vLLM: our scorings against generation, lm-evaluation-harness and a cold prefix cache.

`make bench-mcq` runs it; `report.md` is the result.
"""
