"""`python -m caeav.cli`."""

from caeav.cli import main

if __name__ == "__main__":
    main()
