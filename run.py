"""In a clone, `python run.py …` is what `kd …` is where the package is installed."""

from kd.command import start

if __name__ == "__main__":
    start()
