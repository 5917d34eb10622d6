"""The model card says what the run's summary says, and names no image, person or folder above."""

import pytest
import yaml

from coseg_lightning.report.model_card import Inputs, NetworkFile, model_card
from coseg_lightning.report.results import MASKS

SMP = NetworkFile("model", "smp", outputs=2, multiple_of=32)
INPUTS = Inputs(3, 64, 96, "resize to the side")


def summary_of(**parts):
    """The summary of a run of the app on a folder, of which parts are replaced."""
    summary = {
        "config": {
            "method": {"name": "coseg", "score": "joint", "options": {}},
            "data": {"root": "/home/somebody/hips", "source": {}, "batch_size": 8, "augment": True},
            "model": {"name": "unet", "encoder_name": "resnet18", "encoder_weights": None},
            "optimizer": {"name": "torch.optim.Adam", "lr": 1e-3},
            "averaging": 0.1,
            "seed": 1,
        },
        "test": {
            "dice": 0.91239,
            "accuracy": 0.98765,
            "per_class_dice": [0.99, 0.91239],
            "masks": MASKS[False],
            "images": 12,
            "iou": 0.85,
            "hd95": 3.456,
            "surface_distance": None,
            "without_distance": 2,
            "interval": {"dice": [0.88888, 0.93333]},
            "unit": "mm",
        },
        "samples": {"train": 48, "val": 0, "test": 12},
        "ranking": {"noise_level": 0.3, "estimate": None},
        "correction": {"corrected": 7, "left_alone": False, "left_out": 0},
        "stages": {"robust_training": {"epochs": 14}, "test": {"epochs": 0}},
    }
    return {**summary, **parts}


def with_config(**groups):
    summary = summary_of()
    return {**summary, "config": {**summary["config"], **groups}}


def front_matter(card):
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_the_hub_reads_its_first_lines():
    head = front_matter(model_card(summary_of(), SMP))
    assert head["library_name"] == "segmentation-models-pytorch"
    assert head["pipeline_tag"] == "image-segmentation"
    assert head["metrics"] == ["dice", "iou", "accuracy"]
    assert "noisy-labels" in head["tags"]
    assert "license" not in head  # which the user decides
    for kind, library in (("onnx", "onnx"), ("torchscript", "pytorch"), ("weights", "pytorch")):
        assert front_matter(model_card(summary_of(), NetworkFile("m", kind, 2)))[
            "library_name"
        ] == (library)


def test_huggingface_hub_takes_it():
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(model_card(summary_of(), SMP))
    assert card.data.library_name == "segmentation-models-pytorch"
    assert card.data.metrics == ["dice", "iou", "accuracy"]
    assert card.text.lstrip().startswith("# Segmentation network: unet")


def test_figures_are_those_of_the_summary():
    card = model_card(summary_of(), SMP, INPUTS)
    assert "| Dice | 0.9124 | 0.8889 to 0.9333 |" in card
    assert "| IoU | 0.8500 | - |" in card
    assert "| HD95 | 3.46 mm | - |" in card
    assert "Mean surface distance" not in card
    assert "12 test images" in card
    assert "2 images have no distances" in card
    assert "training: 48 images; validation: 0 images; test: 12 images" in card
    assert "The run corrected 7 of 48 training masks." in card
    assert "robust\\_training, epochs: 14 |" in card
    assert "multiples of 32" in card
    assert "(N, 3, 64, 96)" in card


def test_without_a_test_there_are_no_figures():
    untested = {"dice": None, "accuracy": None, "per_class_dice": [None, None]}
    card = model_card(summary_of(test=untested), SMP)
    assert "The network was not tested, so there are no figures." in card
    assert "Nobody has measured how good the network is." in card
    assert "| Dice" not in card
    assert "metrics" not in front_matter(card)


@pytest.mark.parametrize(
    ("trusted", "sentence"),
    [
        (True, "Tested on trusted masks"),
        (False, "which nobody checked. The figures say how well the network agrees with these"),
        (None, "the run does not know whether they are right"),
    ],
)
def test_it_says_of_whose_masks_the_test_is(trusted, sentence):
    test = {**summary_of()["test"], "masks": MASKS[trusted]}
    assert sentence in model_card(summary_of(test=test), SMP)


@pytest.mark.parametrize(
    ("ranking", "sentence"),
    [
        ({"noise_level": 0.3}, "was given as 0.3. It was not measured."),
        ({"noise_level": None}, "The method uses no noise level, and none was estimated."),
        (
            {
                "noise_level": 0.21,
                "estimate": {
                    "separable": True,
                    "sentence": "estimated 0.21 (90 % interval 0.1 to 0.3).",
                },
            },
            "The share of bad masks was estimated 0.21 (90 % interval 0.1 to 0.3).",
        ),
        (
            {
                "noise_level": 0.2,
                "estimate": {
                    "separable": False,
                    "sentence": "cannot tell, since good and bad labels have too similar scores; "
                    "using 0.20; give the level if you know it.",
                },
            },
            "is not known, since the estimate is not reliable: good and bad labels have too "
            "similar scores. 0.2 was assumed.",
        ),
        (
            {"noise_level": 0.3, "review": {"sentence": "about 0.12 (90 % interval 0.1 to 0.2)."}},
            "After a review by people: about 0.12 (90 % interval 0.1 to 0.2).",
        ),
    ],
)
def test_the_noise_level_is_given_or_estimated_or_unknown(ranking, sentence):
    assert sentence in model_card(summary_of(ranking=ranking), SMP)


def test_an_experiment_says_which_noise_was_added():
    noise = {"level": 0.4, "label_dice": None, "type2": {"bias": 6}}
    assert "noise of the kind type2 was added to training masks, at a level of 0.4" in model_card(
        with_config(noise=noise), SMP
    )
    none = {"level": 0.0, "label_dice": None}
    assert "experiment:" not in model_card(with_config(noise=none), SMP)


def test_settings_that_differ_from_the_defaults_are_listed():
    assert "The recipe has its default values." in model_card(summary_of(), SMP)
    method = {"name": "coseg", "score": "dice", "rounds": 2, "options": {"agreement_weight": 0.9}}
    card = model_card(with_config(method=method), SMP)
    assert "- `score`: dice (default joint)\n- `rounds`: 2 (default 1)" in card
    assert "| Option of the method: agreement\\_weight | 0.9 |" in card
    config = {
        "method": {"name": "coseg"},
        "seed": 0,
        "data": {"class": "MyData"},
        "peers": {"class": "CoSegModule", "net_a": "unet", "step": "joint", "lr": 1e-3},
        "recipe": {"averaging": 0, "score": "joint"},
    }
    card = model_card(summary_of(config=config), SMP)  # a run from Python
    assert "- `averaging`: 0 (default 0.1)\n- `step`: joint (default picks)" in card
    assert "the datamodule MyData" in card
    assert "coseg predict" not in card


def test_stages_of_baselines_are_not_of_the_network():
    stages = {"noisy_baseline": {"epochs": 3}, **summary_of()["stages"]}
    baselines = {"noisy": {"dice": 0.8}, "clean": {"dice": None}}
    card = model_card(summary_of(stages=stages, baselines=baselines), SMP)
    assert "noisy\\_baseline" not in card
    assert "- Plain network, labels as given: Dice 0.8000" in card
    assert "clean labels" not in card


def test_a_review_is_told_in_numbers():
    counts = {"decided": 9, "rejected": 2, "taken": 3, "redrawn": 1, "corrected": 5, "left_out": 4}
    summary = summary_of(correction=counts)
    summary["config"] |= {"review": {"patient-7": "ok"}, "reviewed_run": "/home/somebody/run"}
    card = model_card(summary, SMP)
    assert "People decided on 9 masks" in card
    assert "took 3 proposals for masks that the run had not corrected, and redrew 1 masks" in card
    assert "4 masks were left out of training." in card
    assert "patient-7" not in card
    assert "somebody" not in card


def test_no_id_no_person_and_no_folder_above_is_named():
    data = {
        "root": r"C:\Users\somebody\hips",
        "masks": ["masks_anna", "masks_ben"],
        "annotators": "/home/somebody/annotators.csv",
        "trusted_ids": ["patient-7"],
        "clean_ids": ["patient-7"],
        "kinds": {"patient-7": "north"},
        "group": "(patient-\\d+)_.*",
        "cache": "/home/somebody/cache",
        "augmentation": {"_target_": "mine.f", "path": "/home/somebody/a.yaml"},
        "class_names": ["lung"],
        "bands": [4, 3, 2],
    }
    model = {"name": "unet", "encoder_weights": "/home/somebody/weights.safetensors"}
    labels = {"fusion": "majority", "images_with_several": 5, "annotators": {"anna": {"masks": 5}}}
    summary = {**with_config(data=data, model=model, hide_annotators=True), "labels": labels}
    card = model_card(summary, NetworkFile("model.onnx", "onnx", 2), INPUTS)
    for secret in ("somebody", "anna", "ben", "patient", "north", "/home"):
        assert secret not in card
    assert "the folder hips" in card
    assert "| Pretrained weights | weights.safetensors |" in card
    assert "Classes: background, lung" in card
    assert "Bands of the files: 4, 3, 2" in card
    assert "5 images have masks by several people, fused by `majority`" in card


def test_names_are_text_and_no_markup():
    data = {"root": "/data/<script>|`x`\n# title", "class_names": ["a|b"]}
    card = model_card(with_config(data=data), SMP)
    assert "<script>" not in card.replace("\\<", "")
    assert "\n# title" not in card
    assert "a\\|b" in card


def test_a_binary_network_of_one_output_is_told_apart():
    card = model_card(summary_of(), NetworkFile("model", "weights", outputs=1))
    assert "its sigmoid is the probability of class 1" in card


def test_a_fold_and_a_class_that_is_never_found_are_told():
    summary = summary_of(test={**summary_of()["test"], "per_class_dice": [0.9, 0.0]})
    summary["config"] |= {"fold": "fold_2"}
    card = model_card(summary, SMP)
    assert "this is the network of fold\\_2" in card
    assert "it never finds class 1" in card


def test_several_test_loaders_have_their_own_rows():
    each = [{"dice": 0.5, "accuracy": None}, {"dice": 0.6, "accuracy": 0.9}]
    test = {**each[0], "per_class_dice": [0.9, 0.5], "dataloaders": each}
    card = model_card(summary_of(test=test), SMP)
    assert "| Dice, loader 1 | 0.5000 | - |" in card
    assert "| Pixel accuracy, loader 2 | 0.9000 | - |" in card
