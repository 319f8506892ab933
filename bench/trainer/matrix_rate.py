"""Prints the float32 matrix rate of this machine, FLOP/s."""

from __future__ import annotations

import sys

from preceptor_trainer.hardware import matrix_rate

if __name__ == "__main__":
    sys.stdout.write(f"{matrix_rate('cpu', seconds=3.0)}\n")
