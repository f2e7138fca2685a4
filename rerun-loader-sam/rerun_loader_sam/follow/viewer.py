"""A running viewer as this package sees it: which files it loaded, which recordings it holds.

Needs rerun-sdk 0.41 or later and a viewer of 0.41 or later. The API is experimental, so it is kept in this one place.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rerun_loader_sam.follow.announcements import unescaped_parts

if TYPE_CHECKING:
    from rerun.experimental import EntitySchema, ViewerClient

_IMAGE_COMPONENTS = ("EncodedImage:", "Image:", "DepthImage:")
MASKS = "masks"
_RETRY_S = 1.0


class UnsupportedViewerError(Exception):
    """The viewer, or the SDK installed here, is older than 0.41."""


class UnreachableViewerError(Exception):
    """The viewer does not answer: it is starting, busy, or gone."""


@dataclasses.dataclass(frozen=True)
class StoreName:
    """A recording as a viewer names it: `Recording:APP:REC`, colons in APP escaped."""

    store_id: str

    @property
    def application_id(self) -> str:
        """As the SDK takes it."""
        return self._parts()[1]

    @property
    def recording_id(self) -> str:
        """As the SDK takes it."""
        return self._parts()[2]

    def _parts(self) -> list[str]:
        parts, escaped = [""], False
        for character in self.store_id:
            if character == ":" and not escaped and len(parts) < 3:
                parts.append("")
            elif character == "\\" and not escaped:
                escaped = True
                continue
            else:
                parts[-1] += character
            escaped = False
        return parts + [""] * (3 - len(parts))


@dataclasses.dataclass(frozen=True)
class HeldImage:
    """An image in a recording that is open."""

    store: StoreName
    entity_path: str
    """In Rerun's syntax, as the viewer wrote it."""
    parts: tuple[str, ...]
    """Of the entity path, not escaped."""
    has_masks: bool
    is_alone: bool
    """Whether the recording holds nothing but what belongs to this image."""


class Viewer:
    """A viewer at a URL; `version` is its version, as `0.41.0`.

    To make one, and every method, raises UnreachableViewerError where it does not answer, and
    UnsupportedViewerError where it answers that it cannot tell.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        # Rerun takes a good part of a second to import, and 90 MB.
        import rerun.experimental

        client_class = getattr(rerun.experimental, "ViewerClient", None)
        if client_class is None or not hasattr(client_class, "get_logs"):
            raise UnsupportedViewerError(
                f"rerun-sdk {rerun.__version__} cannot ask a viewer what it opened: that came with 0.41"
            )
        try:
            self._client: ViewerClient = client_class(url)
            self.version = self._client.get_state().viewer_version or ""
        except (ConnectionError, RuntimeError) as error:
            raise _translated(error) from error

    def stores(self) -> list[StoreName]:
        """The recordings that are open, oldest first."""
        try:
            return [StoreName(recording.store_id) for recording in self._client.get_state().recordings]
        except (ConnectionError, RuntimeError) as error:
            raise _translated(error) from error

    def log_lines(self, after_sequence: int | None) -> list[tuple[int, str]]:
        """Number and text of what the viewer logged since; everything that it still has for None."""
        try:
            entries = self._client.get_logs(after_sequence)
        except (ConnectionError, RuntimeError) as error:
            raise _translated(error) from error
        return [(entry.sequence, entry.message) for entry in entries]

    def images(self, store: StoreName, below: Iterable[str] = ()) -> list[HeldImage]:
        """The images of a recording at or below the entity path with these parts; none where it was closed."""
        import rerun as rr

        entity_path = rr.new_entity_path(list(below)) if below else None
        found = []
        entities = self._entities(store, entity_path)
        for entity in entities:
            if not _is_image(entity):
                continue
            path = entity.entity_path
            others = [other.entity_path for other in entities if not other.entity_path.startswith(path)]
            found.append(
                HeldImage(
                    store=store,
                    entity_path=path,
                    parts=tuple(unescaped_parts(path)),
                    has_masks=any(other.entity_path == f"{path}/{MASKS}" for other in entities),
                    is_alone=all(other.startswith("/__properties") for other in others),
                )
            )
        return found

    def still_holds(self, image: HeldImage) -> bool:
        """Whether the image is open: what is sent to a recording that was closed brings it back without."""
        return any(_is_image(entity) for entity in self._entities(image.store, image.entity_path))

    def close_what_came_back(self, image: HeldImage) -> None:
        """Close the recording of an image that the person closed, where it is open with what was sent since alone."""
        from rerun_loader_sam.recording.stream import BESIDE

        entities = self._entities(image.store)
        ours = (f"{image.entity_path}/", f"/{BESIDE}/")
        is_ours = all(f"{entity.entity_path}/".startswith(ours) for entity in entities)
        if not entities or not is_ours or any(_is_image(entity) for entity in entities):
            return
        try:
            self._client.close(store_ids=[image.store.store_id])
        except (ConnectionError, RuntimeError) as error:
            if "NotFound" not in str(error):
                raise _translated(error) from error

    def _entities(self, store: StoreName, entity_path: str | None = None) -> "list[EntitySchema]":
        """What a recording holds, at or below an entity path if there is one; nothing where it was closed."""
        try:
            return self._client.get_recording_schema(
                store.store_id, entity_path=entity_path, max_entities=10_000
            ).entities
        except (ConnectionError, RuntimeError) as error:
            if "NotFound" in str(error):  # the recording, or the entity
                return []
            raise _translated(error) from error


def _is_image(entity: "EntitySchema") -> bool:
    return any(component.component.startswith(_IMAGE_COMPONENTS) for component in entity.components)


def reach(url: str, is_over: Callable[[], bool]) -> Viewer | None:
    """The viewer at `url`, once it answers; None where it `is_over` before. Raises UnsupportedViewerError."""
    while not is_over():
        try:
            return Viewer(url)
        except UnreachableViewerError:  # it is starting
            time.sleep(_RETRY_S)
    return None


def _translated(error: Exception) -> Exception:
    if "Unimplemented" in str(error):
        return UnsupportedViewerError("this viewer cannot tell what it opened: that came with 0.41")
    return UnreachableViewerError(str(error).partition("\n")[0])
