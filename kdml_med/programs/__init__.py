"""What the console command and ``python -m preprocessing.…`` run: arguments in, a screen and an exit code out."""
