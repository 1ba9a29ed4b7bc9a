"""`python -m models.senses` is `python -m models.senses.train`."""

from models.senses.train import main

if __name__ == "__main__":
    main()
