"""The flags of the original's scripts are answered with ours."""

import pytest

from diou_jax.command.arguments import parse
from diou_jax.command.option_names import resolve_name
from diou_jax.command.original_flags import FLAGS
from diou_jax.configs import base
from diou_jax.errors import UserError

TRAINING = "cfg dataset set disp_interval no_cuda bs nw iter_size o lr lr_decay_gamma lr_decay_epochs start_step"
SAVING = "start_iter start_epoch epochs resume no_save ckpt_num_per_epoch load_ckpt load_detectron use_tfboard"
OTHERS = "output_base_dir output_dir range multi-gpu-testing vis image_dir images merge_pdfs cuda"
NAMES = f"{TRAINING} {SAVING} {OTHERS}".split()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["--{}", "-{}", "--{}=5"])
def test_each_is_answered_with_ours(name, form):
    with pytest.raises(UserError) as error:
        parse(["--config", "ciou", form.format(name)])
    assert f"--{name} is " in str(error.value)
    assert "resume_optimizer" not in str(error.value)


def test_every_option_that_an_answer_names_exists():
    config = base.get_config()
    for answer in FLAGS.values():
        for word in answer.replace("=", " ").replace(",", " ").replace(";", " ").split():
            if word.startswith("--config."):
                resolve_name(word.removeprefix("--config."), config)


def test_the_original_s_whole_command_is_translated_in_one_line():
    line = "--dataset coco2017 --cfg configs/e2e.yaml --bs 16 --nw 8 --iter_size 2 --lr 0.01 --o SGD --resume"
    line += " --use_tfboard"
    line += " --load_ckpt a/model_step9.pth --set TEST.NMS 0.3 TRAIN.SCALES (640,800) DATA_LOADER.NUM_THREADS 8"
    with pytest.raises(UserError) as error:
        parse(line.split())
    for words in (
        "--cfg is --config configs/e2e.yaml",
        "--bs is --config.train.batch_size=16",
        "--nw is --config.data.threads=8",
        "--iter_size is --config.solver.iter_size=2",
        "--o is --config.solver.type=SGD",
        "--load_ckpt is --mode import --source a/model_step9.pth",
        '--set is --config.test.nms=0.3 --config.train.scales="(640,800)" --config.data.threads=8',
    ):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_value_that_looks_like_one_of_them_is_none():
    assert parse(["--config", "ciou", "--workdir", "resume"]).workdir == "resume"
