"""Charts in PNG files, drawn by matplotlib where that is installed."""
import contextlib

from gpt2.system import files


@contextlib.contextmanager
def chart(path, width=6.4, height=4.8):
    """A matplotlib Figure for a block to draw into. Then it is written to path as a PNG file. Sizes are in inches.

    Raises ImportError without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a display
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    yield figure
    figure.tight_layout()
    with files.replacing(path) as part:
        figure.savefig(part, format='png')
