"""Masks asked for once more, by their boxes.

A point says where a thing is and leaves open how far it goes; the box of what came of it says that too. As in Cai and
Vasconcelos 2018, Cascade R-CNN, what one answer found is what the next one starts from, and both have a say in
whether there is such a thing: a fragment is rarely what its own box is answered with.
"""

from collections.abc import Sequence
from functools import partial

from rerun_loader_sam.engine.parallel import Cores
from rerun_loader_sam.engine.prompting import EmbeddedCrop
from rerun_loader_sam.masks import Mask

# So much higher the second answer's predicted IoU has to be: it knows no more of where the border is than the first.
LEAST_GAIN = 0.2


def confirmed_by_box(
    embedded: EmbeddedCrop, masks: Sequence[Mask], batch_size: int, cores: Cores, pred_iou_thresh: float
) -> list[Mask]:
    """The masks that stay, each as it was or as the model answers its box with, if that is much better.

    Args:
        embedded: The crop that the masks are of.
        masks: Any.
        batch_size: Prompts that are decoded at once.
        cores: Who works.
        pred_iou_thresh: The mean of both predicted IoUs of what stays is above this.
    """
    batches = [masks[start : start + batch_size] for start in range(0, len(masks), batch_size)]
    answer = partial(embedded.answer_boxes, least_gain=LEAST_GAIN)
    return [
        better or mask
        for batch, answers in zip(batches, cores.in_order(answer, batches), strict=True)
        for mask, (predicted_iou, better) in zip(batch, answers, strict=True)
        if (mask.predicted_iou + predicted_iou) / 2 > pred_iou_thresh
    ]
