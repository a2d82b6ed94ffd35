"""`python -m mixer_probe`: the command line, for torchrun among others."""

from mixer_probe.cli import main

if __name__ == "__main__":
    main()
