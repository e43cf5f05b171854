"""Stories that the library tells by experiment, computed each time they are told.

story = collapse(seed=0)        # attention collapses, the alarm, the remedy: three trainings, a minute or two
print("\\n".join(story.lines()))
story.write("demos/collapse")   # collapse.png, collapse.json
"""

from clearhead.demo.story import Collapse, collapse

__all__ = ["Collapse", "collapse"]
