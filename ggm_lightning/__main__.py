"""`python -m ggm_lightning fit ...`: the same as the `lightning` command."""

from ggm_lightning.cli.main import main

if __name__ == "__main__":
    main()
