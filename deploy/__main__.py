"""`python -m deploy` is `fleet`."""

from deploy.cli import main

if __name__ == "__main__":
    main()
