"""``python -m autodiffusion_opt``: the command line, where its script is not on the path."""

from autodiffusion_opt.cli import main

if __name__ == "__main__":
    main()
