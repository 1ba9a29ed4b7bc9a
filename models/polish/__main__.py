"""`python -m models.polish` is `python -m models.polish.train`."""

from models.polish.train import main

if __name__ == "__main__":
    main()
