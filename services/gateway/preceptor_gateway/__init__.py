"""The gateway. Read `app`, then any feature's `endpoints` and `service`; `engine` is the only door to vLLM."""
