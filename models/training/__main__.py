"""`python -m models.training` is `python -m models.training.train`."""

from models.training.train import main

if __name__ == "__main__":
    main()
