"""Trains, evaluates and applies a detector: python main.py --config configs/ciou.py; --help says more."""

from diou_jax.command.program import main

if __name__ == "__main__":
    main()
