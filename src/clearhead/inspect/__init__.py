"""Looking into a trained model: what every head does with a text, as a table, sentences, pictures and JSON.

found = inspect("runs/g2p", "attention", out="inspected/g2p")      # or a folder that save_pretrained wrote
found.seen, found.findings, found.pairs, found.files
print("\\n".join(report(found)))
"""

from clearhead.inspect.files import read_text
from clearhead.inspect.folders import open_model
from clearhead.inspect.look import Inspection, inspect
from clearhead.inspect.models import Inspected, Reading
from clearhead.inspect.words import report

__all__ = ["Inspected", "Inspection", "Reading", "inspect", "open_model", "read_text", "report"]
