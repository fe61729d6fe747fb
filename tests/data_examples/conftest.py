"""Import matplotlib before the examples.

The examples' package sets import shims; with enforced types their ``find_spec`` refuses the path
object of a namespace package, and matplotlib asks for one (``mpl_toolkits``) when it is imported.
"""

import matplotlib.figure as _figure

__all__ = ["_figure"]
