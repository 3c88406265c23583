"""`python -m vitral` is the command `vitral`."""

from vitral.cli.main import entry

if __name__ == "__main__":
    entry()
