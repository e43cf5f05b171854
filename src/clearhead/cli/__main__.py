"""`python -m clearhead.cli`: the program `clearhead`."""

from clearhead.cli import main

if __name__ == "__main__":
    main()
