"""The gateway side by side with the proxies that people use today: `make bench-gateway`."""
