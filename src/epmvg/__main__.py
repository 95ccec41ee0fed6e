"""`python -m epmvg`, and the way launchers of several processes start the command line."""

from epmvg.cli import main

if __name__ == "__main__":
    main()
