"""python -m diou_jax: the same program as main.py."""

from diou_jax.command.program import main

if __name__ == "__main__":
    main()
