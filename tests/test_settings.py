"""Settings come from the environment, then the file, then the defaults; a wrong one is named."""

from pathlib import Path

import pytest

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.settings import Settings, config_file, load_settings


def write(text: str) -> Path:
    path = config_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.usefixtures("user")
class TestSettings:
    def test_nothing_set_gives_the_defaults(self) -> None:
        assert load_settings({}) == Settings()
        assert Settings().generator_overrides() == {}

    def test_the_environment_goes_over_the_file(self) -> None:
        write('model = "vit_l"\npoints_per_side = 8\npred_iou_thresh = 1\ndownload = "never"\n')
        settings = load_settings({"RERUN_SAM_MODEL": "vit_b", "RERUN_SAM_CROP_N_LAYERS": " 1 ", "OTHER": "x"})
        assert (settings.model, settings.download) == ("vit_b", "never")
        assert settings.generator_overrides() == {"points_per_side": 8, "pred_iou_thresh": 1.0, "crop_n_layers": 1}

    def test_an_empty_variable_is_not_set(self) -> None:
        assert load_settings({"RERUN_SAM_MODEL": ""}) == Settings()

    @pytest.mark.parametrize(
        ("variable", "value", "named"),
        [
            ("RERUN_SAM_POINTS_PER_SIDE", "many", "'many' is not a whole number"),
            ("RERUN_SAM_POINTS_PER_SIDE", "0", "outside 1 to 256"),
            ("RERUN_SAM_POINTS_PER_SIDE", "1.5", "not a whole number"),
            ("RERUN_SAM_BOX_NMS_THRESH", "nan", "outside 0 to 1"),
            ("RERUN_SAM_DOWNLOAD", "maybe", "none of auto, never"),
            ("RERUN_SAM_DEVICE", "tpu", "cuda:N"),
            ("RERUN_SAM_DEVICE", "cuda:x", "cuda:N"),
            ("RERUN_SAM_CHECKPOINT_URL", "http://mirror", "https"),
            ("RERUN_SAM_POINT_PER_SIDE", "8", "did you mean 'points_per_side'"),
        ],
    )
    def test_a_wrong_variable_is_named_with_its_value(self, variable: str, value: str, named: str) -> None:
        with pytest.raises(UserError) as caught:
            load_settings({variable: value})
        assert variable in str(caught.value)
        assert named in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("points_per_side = true", "points_per_side"),
            ('points_per_side = "eight"', "'eight'"),
            ("model = 3", "model"),
            ("modle = 'vit_b'", "did you mean 'model'"),
            ("model = ", "TOML"),
        ],
    )
    def test_a_wrong_line_is_named_with_its_file(self, text: str, named: str) -> None:
        path = write(text)
        with pytest.raises(UserError) as caught:
            load_settings({})
        assert str(path) in str(caught.value)
        assert named in str(caught.value)
