"""An input as a report shows it: an excerpt of a text, a thumbnail as a data URI, the first numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

THUMBNAIL_PX = 96
EXCERPT_CHARACTERS = 400
SHOWN_NUMBERS = 8


def shown(entry: Any, modality: str) -> str:
    """One input as text, at most a few hundred characters; for images a PNG data URI of at most 96 x 96 pixels.

    An image that cannot be read any more (moved or changed since the run) gives a note in its place.
    """
    if modality == "text":
        text = entry if isinstance(entry, str) else " | ".join(entry)
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair fits in no file
        return text if len(text) <= EXCERPT_CHARACTERS else text[:EXCERPT_CHARACTERS] + " …"
    if modality == "features":
        numbers = ", ".join(f"{value:.3g}" for value in np.asarray(entry)[:SHOWN_NUMBERS])
        return numbers + (" …" if len(entry) > SHOWN_NUMBERS else "")
    import base64
    import io

    from ontarget.runtime.preprocess import InputError, open_image

    try:
        image = open_image(entry).convert("RGB")
    except InputError as error:
        return f"(no picture: {error})"
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
