"""JSON as text by encoders made once: ``json.dumps`` makes one for every call that has options."""

from __future__ import annotations

import json

compact = json.JSONEncoder(separators=(",", ":")).encode
"""Without white space, in ASCII: whatever a backend cut in half can be sent."""
as_it_is = json.JSONEncoder(ensure_ascii=False).encode
"""With the characters that the text has."""
