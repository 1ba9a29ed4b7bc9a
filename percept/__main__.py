"""`python -m percept` is the command `percept`."""

from percept.cli import main

if __name__ == "__main__":
    main()
