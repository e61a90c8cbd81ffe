"""The longer commands; `cli.py` reads their arguments."""
