"""Checkpoints into models: the architecture is read off the tensors, so a file may have any name."""

import json
import pickle
import warnings
import zipfile
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from rerun_loader_sam.engine.device import usable_device
from rerun_loader_sam.errors import UserError, first_line

StateDict = dict[str, torch.Tensor]

# ImageNet's, in 0 to 255; not stored in any checkpoint, because upstream's buffers are not persistent.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

# The number of heads leaves no trace in the tensors' shapes; Meta's decoder has always had eight.
_DECODER_HEADS = 8

_PATCHES = "image_encoder.patch_embed.proj.weight"
_NANO_CONFIG = "config"


def load_model(name_or_path: str | Path, device: str | torch.device = "cpu") -> Sam:
    """The model of a checkpoint file, in eval mode, on `device`.

    Args:
        name_or_path: A `.pth` or `.pt` file (read with `weights_only=True`, so that it cannot run code) or a
            `.safetensors` file; or the name of a model that is known and already on this machine
            (`nano`, `vit_b`, ...): nothing is downloaded. The architecture (vit_b, vit_l, vit_h, others of
            their family, nano) is recognised from the contents, never from the file's name.
        device: A torch device, such as `cpu`, `cuda`, `cuda:1` or `mps`.

    Raises:
        UserError: The file is missing, damaged or no Segment Anything checkpoint, or there is no such device.
    """
    path = _resolve(name_or_path)
    target = usable_device(device)
    state, metadata = _read(path)
    try:
        if _PATCHES in state and "image_encoder.blocks.0.attn.qkv.weight" in state:
            with torch.device("meta"):
                sam = _empty_vit(state)
        elif _NANO_CONFIG in metadata:
            from rerun_loader_sam.engine.nano import NanoConfig, build_nano

            with torch.device("meta"):
                sam = build_nano(NanoConfig(**json.loads(metadata[_NANO_CONFIG])))
        else:
            raise UserError(
                f"{path} holds no Segment Anything model that is known here (vit_b, vit_l, vit_h, nano); "
                "nothing was loaded; choose another file with RERUN_SAM_MODEL"
            )
        sam.load_state_dict(state, assign=True)
    except (KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
        raise UserError(
            f"{path} does not fit the architecture that it seems to have ({first_line(error)}); "
            "nothing was loaded; fetch it again or choose another file with RERUN_SAM_MODEL"
        ) from error
    _fill_unsaved_buffers(sam)
    sam.requires_grad_(False)
    sam.eval()
    return sam.float().to(target)


def _fill_unsaved_buffers(sam: Sam) -> None:
    for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
        setattr(sam, name, torch.tensor(values).view(-1, 1, 1))
    left = [name for name, tensor in (*sam.named_parameters(), *sam.named_buffers()) if tensor.is_meta]
    if left:
        raise UserError(f"the checkpoint leaves tensors undefined ({', '.join(left[:3])}); nothing was loaded")


def _resolve(name_or_path: str | Path) -> Path:
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if isinstance(name_or_path, str) and path.name == name_or_path and not path.suffix:
        from rerun_loader_sam.models.registry import known_entry
        from rerun_loader_sam.models.store import checkpoint_path, find_checkpoint

        entry = known_entry(name_or_path)
        if found := find_checkpoint(entry):
            return found
        raise UserError(
            f"the checkpoint of {entry.name} is not on this machine, or is not what it should be "
            f"({checkpoint_path(entry)}); nothing was loaded; rerun-sam models can fetch it"
        )
    what = "is a folder" if path.is_dir() else "does not exist"
    raise UserError(f"the checkpoint {path} {what}; nothing was loaded; set RERUN_SAM_MODEL to a model or a file")


def _read(path: Path) -> tuple[StateDict, dict[str, str]]:
    """State dict and metadata of a file, on the CPU."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        # Mapping the file costs no time and no memory of its own; only torch's zip format can be mapped.
        with warnings.catch_warnings(action="ignore"):  # of other programs' pickles: either it loads or it does not
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise UserError(f"the checkpoint {path} cannot be read ({first_line(error)}); nothing was loaded") from error
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        raise UserError(
            f"{path} is no checkpoint or is damaged ({first_line(error)}); nothing was loaded; "
            "remove it and fetch it again, or choose another file with RERUN_SAM_MODEL"
        ) from error
    return _state_dict_in(content, path), {}


def _state_dict_in(content: object, path: Path) -> StateDict:
    """The tensors by name, out of the wrappings that training scripts put around them."""
    for wrapping in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapping), dict):
            content = content[wrapping]
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"{path} holds no tensors by name; nothing was loaded; choose another file with RERUN_SAM_MODEL"
        )
    state: StateDict = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path} holds other things than tensors ({name!r}); nothing was loaded")
        state[name.removeprefix("module.")] = tensor
    return state


def _empty_vit(state: StateDict) -> Sam:
    """A model of the ViT family without values, of the sizes that the tensors have."""
    width, _, patch, _ = state[_PATCHES].shape
    tokens = state["image_encoder.pos_embed"].shape[1]
    n_blocks = _count(state, "image_encoder.blocks.{}.norm1.weight")
    rel_pos = [state[f"image_encoder.blocks.{i}.attn.rel_pos_h"] for i in range(n_blocks)]
    # Table lengths are 2 * side - 1: of the whole grid in global blocks, of the window in the others.
    global_blocks = tuple(i for i, table in enumerate(rel_pos) if len(table) == 2 * tokens - 1)
    windows = {(len(table) + 1) // 2 for i, table in enumerate(rel_pos) if i not in global_blocks}
    if len(windows) > 1:
        raise ValueError(f"windows of several sizes: {sorted(windows)}")
    dim = state["mask_decoder.iou_token.weight"].shape[1]
    first_mlp = "mask_decoder.transformer.layers.0.mlp.lin1.weight"
    iou_head = "mask_decoder.iou_prediction_head.layers.{}.weight"
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=tokens * patch,
            patch_size=patch,
            embed_dim=width,
            depth=n_blocks,
            num_heads=width // rel_pos[0].shape[1],
            mlp_ratio=state["image_encoder.blocks.0.mlp.lin1.weight"].shape[0] / width,
            out_chans=dim,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=windows.pop() if windows else 0,
            global_attn_indexes=global_blocks,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=dim,
            image_embedding_size=(tokens, tokens),
            input_image_size=(tokens * patch, tokens * patch),
            mask_in_chans=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=state["mask_decoder.mask_tokens.weight"].shape[0] - 1,
            transformer=TwoWayTransformer(
                depth=_count(state, "mask_decoder.transformer.layers.{}.norm1.weight"),
                embedding_dim=dim,
                mlp_dim=state[first_mlp].shape[0],
                num_heads=_DECODER_HEADS,
            ),
            transformer_dim=dim,
            iou_head_depth=_count(state, iou_head),
            iou_head_hidden_dim=state[iou_head.format(0)].shape[0],
        ),
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    )


def _count(state: StateDict, pattern: str) -> int:
    count = 0
    while pattern.format(count) in state:
        count += 1
    return count
