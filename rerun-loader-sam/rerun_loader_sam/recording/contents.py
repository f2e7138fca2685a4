"""What goes where in the recording: entity paths, archetypes and the layout."""

from typing import Literal

import numpy as np
import rerun as rr
import rerun.blueprint as rrb
from numpy.typing import NDArray

from rerun_loader_sam.masks import Mask
from rerun_loader_sam.recording.layers import class_color, class_image, mask_tensor, tensor_step
from rerun_loader_sam.recording.stream import Recording

TIMELINE = "image"
IMAGE, MASKS, BOXES, TENSOR, LOGS, DESCRIPTION = (
    "image",
    "image/masks",
    "image/boxes",
    "mask_tensor",
    "logs",
    "description",
)
PROGRESS = "image/progress"
MASKS_SO_FAR = "image/masks_so_far"
MASK_OPACITY = 0.5
WAITS = "Waits for the images before it"
LEVEL_COLORS = {"INFO": (255, 255, 255), "WARN": (255, 200, 60), "ERROR": (255, 110, 90)}


def log_image(recording: Recording, pixels: NDArray[np.generic], color_model: Literal["L", "RGB", "RGBA"]) -> None:
    """Log the image: (H, W) or (H, W, 3 or 4), with `color_model` L, RGB or RGBA."""
    height, width = pixels.shape[:2]
    # Not the array itself: the SDK would take a single row of pixels for a column of channels.
    image = rr.Image(
        bytes=pixels.tobytes(), width=width, height=height, color_model=color_model, datatype=pixels.dtype.type
    )
    recording.log(IMAGE, image)


def log_blueprint(recording: Recording) -> None:
    """Send the default layout: the image with masks and boxes large, log and description below."""
    recording.send_blueprint(
        rrb.Vertical(
            rrb.Spatial2DView(name="Image and masks", origin=f"/{recording.path(IMAGE)}"),
            rrb.Horizontal(
                rrb.TextLogView(name="Log", origin=f"/{recording.path(LOGS)}"),
                rrb.TextDocumentView(name="Description", origin=f"/{recording.path(DESCRIPTION)}"),
                column_shares=[2, 1],
            ),
            row_shares=[3, 1],
        )
    )


def log_text(recording: Recording, text: str, level: str = "INFO") -> None:
    """Log one line for the person; `level` is INFO, WARN or ERROR."""
    if not recording.is_over_image:
        recording.log(LOGS, rr.TextLog(text, level=level))
        return
    # A text log would take a view in the person's layout: the last line lies over the image instead.
    recording.lines.append(f"{level}  {text}")
    recording.log(LOGS, rr.TextDocument("\n".join(recording.lines)))
    color = LEVEL_COLORS.get(level, LEVEL_COLORS["INFO"])
    label = rr.Points2D(recording.progress_xy, radii=0.01, labels=text, colors=color, show_labels=True)
    recording.log(PROGRESS, label)


def place_progress(recording: Recording, size_hw: tuple[int, int]) -> None:
    """Say how large the image is over which the last line of the log is to lie: near its upper edge."""
    height, width = size_hw
    recording.progress_xy = (width / 2, height / 20)


def log_masks_so_far(recording: Recording, masks: list[Mask], size_hw: tuple[int, int]) -> None:
    """Log masks that came up while the work goes on, layered like those at the end, which replace them."""
    # Without a colour of its own what is no mask would be tinted too; the masks get the viewer's own colours.
    context = rr.AnnotationContext([rr.AnnotationInfo(id=0, label="no mask", color=(0, 0, 0, 0))])
    recording.log(MASKS_SO_FAR, rr.SegmentationImage(class_image(masks, size_hw), opacity=MASK_OPACITY), context)
    recording.flush()


def clear(recording: Recording, entity_path: str) -> None:
    """Take what was only for the time of the work off the image."""
    recording.log(entity_path, rr.Clear(recursive=False))
    recording.flush()


def log_description(recording: Recording, markdown: str) -> None:
    """Log what this recording is, for good."""
    recording.log(DESCRIPTION, rr.TextDocument(markdown, media_type="text/markdown"), static=True)


def log_annotations(recording: Recording, mask_count: int) -> None:
    """Log a colour and a label for each mask number up to `mask_count`."""
    background = rr.AnnotationInfo(id=0, label="no mask", color=(0, 0, 0, 0))
    masks = [
        rr.AnnotationInfo(id=number, label=f"mask {number}", color=class_color(number))
        for number in range(1, mask_count + 1)
    ]
    recording.log(IMAGE, rr.AnnotationContext([background, *masks]), static=True)


def log_masks(recording: Recording, masks: list[Mask], size_hw: tuple[int, int], tensor_limit_bytes: float) -> int:
    """Log the masks as a class image, boxes and a tensor; mask numbers count from 1 in the order of `masks`.

    Returns the whole number by which the tensor was reduced to stay within `tensor_limit_bytes`.
    """
    recording.log(MASKS, rr.SegmentationImage(class_image(masks, size_hw), opacity=MASK_OPACITY))
    recording.flush()
    log_boxes(recording, masks)
    recording.flush()
    step = tensor_step(size_hw, len(masks), tensor_limit_bytes)
    planes = mask_tensor(masks, size_hw, step)
    recording.log(TENSOR, rr.Tensor(planes, dim_names=("height", "width", "mask")))
    recording.flush()
    return step


def log_boxes(recording: Recording, masks: list[Mask]) -> None:
    """Log a box for each mask, with its number as class id and its scores as components of its own."""
    recording.log(
        BOXES,
        rr.Boxes2D(
            array=np.array([mask.bbox_xywh for mask in masks], np.float32).reshape(-1, 4),
            array_format=rr.Box2DFormat.XYWH,
            class_ids=np.arange(1, len(masks) + 1, dtype=np.uint16),
            show_labels=False,
        ),
        *_scores(masks),
    )


def _scores(masks: list[Mask]) -> list[rr.AnyValues]:
    """Components that Rerun has no name for; none for no masks, since an empty one has no type."""
    if not masks:
        return []
    return [
        rr.AnyValues(
            area=np.array([mask.area for mask in masks], np.int64),
            predicted_iou=np.array([mask.predicted_iou for mask in masks], np.float32),
            stability_score=np.array([mask.stability_score for mask in masks], np.float32),
        )
    ]
