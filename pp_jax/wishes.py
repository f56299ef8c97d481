"""What one may want to do, and the command that does it.

The table of README.md, whose second column is Markdown, and the text of `python -m pp_jax`.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType


def find(words: Sequence[str]) -> dict[str, str]:
    """The rows in which each of the words stands, in either column; all rows for no word."""
    wanted = [word.casefold() for word in words]
    return {
        wish: command
        for wish, command in WISHES.items()
        if all(word in f"{wish} {command}".casefold() for word in wanted)
    }


def plain(cell: str) -> str:
    """A cell as it is read in a terminal: without marks of code, a link as its target."""
    return re.sub(r"\[[^]]*\]\(([^)]*)\)", r"\1", cell).replace("`", "")


WISHES: Mapping[str, str] = MappingProxyType(
    {
        "see it work": "`make train`",
        "run the tests": "`make test`",
        "compare with torch SAM at full size": "`make parity` (tables in `runs/parity/`)",
        "know why my result differs": "`.venv/bin/python -m pp_jax.doctor checkpoints/vit_b IMAGE`",
        "get and convert official weights": (
            "`make convert-tools`, then `.venv/bin/python -m convert --download vit_b`"
        ),
        "convert a file I have (official, Hugging Face, MedSAM)": (
            "`.venv/bin/python -m convert sam_vit_b_01ec64.pth checkpoints/vit_b`"
        ),
        "take fine-tuned weights to torch": (
            "`.venv/bin/python -m convert runs/NAME fine_tuned.pth` (pairs merged; `--part lora` "
            "for them alone, `--add PART` to put them into official weights)"
        ),
        "average several runs' answers": (
            "`--checkpoint runs/X/fold*` (`predict`; `eval.py` on other data)"
        ),
        "segment my own images by a box, or by clicks": (
            "`.venv/bin/python -m pp_jax.predict IMAGES --checkpoint checkpoints/vit_b --out DIR "
            "--box X0 Y0 X1 Y1` (or `--point X Y`)"
        ),
        "segment everything in them": (
            "`.venv/bin/python -m pp_jax.predict IMAGES --checkpoint checkpoints/vit_b --out DIR "
            "--auto`"
        ),
        "let SAM draft masks to train on": (
            "add `--as-dataset DIR`, then `.venv/bin/python train.py --data folder --data-dir DIR`"
        ),
        "keep code written for the official package": (
            "`from pp_jax.segment_anything import SamPredictor, sam_model_registry`"
        ),
        "train on another data set, or a folder of mine": (
            "`.venv/bin/python train.py --data NAME --data-dir DIR` "
            "([`docs/data.md`](docs/data.md): RSNA, ChestX-ray14, nnU-Net, COCO, a CSV of boxes, "
            "...)"
        ),
        "know what is in a data set, and what may mislead": (
            "`.venv/bin/python -m data describe NAME --data-dir DIR`"
        ),
        "find pictures that two sets share": "`.venv/bin/python -m data check NAME=DIR NAME=DIR`",
        "decode a data set once, for all runs": (
            "`.venv/bin/python -m data prepare NAME --source DIR --out OUT`, then `--data NAME "
            "--data-dir OUT`"
        ),
        "train the decoder without encoding an image twice": (
            "`.venv/bin/python train.py --embeddings bfloat16`"
        ),
        "mix data sets, or positives and negatives": (
            "`.venv/bin/python train.py --data A,B --data-dir DIR,DIR --mix 2,1` (`--prompting "
            "none --balance`)"
        ),
        "train on ellipses or pseudo-masks where there are boxes": (
            "`.venv/bin/python train.py --target ellipse` (`otsu`, `grabcut`, `edges`)"
        ),
        "fine-tune ViT-B's decoder on RSNA": (
            "`.venv/bin/python train.py --preset rsna-vit_b-decoder --data-dir DIR`"
        ),
        "see what SAM would see of my images": "`.venv/bin/python -m pp_jax.preprocess IMAGES OUT`",
        "show SAM edges instead of the image": (
            "`.venv/bin/python train.py --filter 'clahe>sobel'` (or `canny_quantile`; `sobel` "
            "alone is dark on X-rays)"
        ),
        "chain filters (quote the `>`)": (
            "`.venv/bin/python train.py --filter 'median:3>clahe>musica>sobel:3'`"
        ),
        "blend edges into the image": (
            "`.venv/bin/python train.py --filter canny --fusion blend --blend 0.3`, or `--recipe "
            "edges`"
        ),
        "show image, edges and blobs as three channels": (
            "`.venv/bin/python train.py --filter canny,log --fusion channels`"
        ),
        "let the training mix image and filters": (
            "`.venv/bin/python train.py --filter sobel,clahe --fusion learned`"
        ),
        "cut off black borders, or zoom to each box": (
            "`--roi content` (training too), `--roi box-context:1.5` (eval.py and predict)"
        ),
        "augment on the device": (
            "`.venv/bin/python train.py --augment light` (or `'flip>rotate:10>noise:5'`)"
        ),
        "train with one click, or without any prompt": (
            "`.venv/bin/python train.py --prompting point` (or `none`; "
            "[`docs/training.md`](docs/training.md))"
        ),
        "train as SAM was: box or click, then clicks on its errors": (
            "`.venv/bin/python train.py --prompting iterative`"
        ),
        "adapt the encoder by low-rank pairs": (
            "`.venv/bin/python train.py --trainable lora --lora-rank 8` (or `last-k`, "
            "`norm+bias`, `decoder+prompt`, `full`)"
        ),
        "learn masks from boxes alone": (
            "`.venv/bin/python train.py --preset rsna-vit_b-boxes --data-dir DIR`"
        ),
        "take a whole recipe": (
            "`.venv/bin/python train.py --preset NAME` (`--help` names them, with time and result)"
        ),
        "know what a training takes, before renting": (
            "add `--plan cpu:8` or `--plan tpu:v5e:4x4` (extra `tpu-plan`)"
        ),
        "cut the model over devices": (
            "`.venv/bin/python train.py --mesh data=2,fsdp=4`; on several hosts the same command "
            "with `--distributed`"
        ),
        "train at another image size": "`.venv/bin/python train.py --image-size 512`",
        "try ViT-H without weights": (
            "`.venv/bin/python train.py --variant vit_h --init random --steps 2`"
        ),
        "have a quick look at much data": "add `--limit 50` (patients)",
        "resume a run": "the same command again, or `.venv/bin/python train.py --resume runs/NAME`",
        "start anew from a run's weights": (
            "`.venv/bin/python train.py --init runs/NAME --out runs/OTHER`"
        ),
        "stop when validation gets no better": "add `--patience 5`",
        "watch a training": (
            "`RUN/curves.png`, `RUN/pictures/`, `tensorboard --logdir runs` (and `--wandb PROJECT`)"
        ),
        "score a run": "`.venv/bin/python eval.py --checkpoint runs/NAME`",
        "score it on other data": (
            "`.venv/bin/python eval.py --checkpoint runs/NAME --data rsna --data-dir DIR "
            "--prompt point`"
        ),
        "score official weights as they are": (
            "`.venv/bin/python eval.py --checkpoint checkpoints/vit_b --data rsna --data-dir DIR "
            "--prompt point`"
        ),
        "read a report": (
            "open `report.html` in its folder; `images.csv` has the figures per image, "
            "`claim.md` the checklist CLAIM"
        ),
        "compare models": (
            "`.venv/bin/python eval.py --methods first=runs/NAME 'second=runs/NAME filter=clahe' "
            "third=runs/OTHER`"
        ),
        "compare with thresholds, clusters, snakes and others": (
            "`.venv/bin/python eval.py --methods runs/NAME classical --prompt box` (or some of "
            "them by name, refined: `'otsu refine=fill_holes'`; "
            "[`docs/segmentation.md`](docs/segmentation.md))"
        ),
        "compare with a U-Net": (
            "`.venv/bin/python train.py --model unet-tiny --prompting none` (or `box`; `unet`, "
            "`unet-vgg16`, `unet-resnet`, `fcn`, `deeplabv3+`)"
        ),
        "start a network from a pretrained encoder": (
            "`.venv/bin/python -m convert vgg16-397923af.pth checkpoints/vgg16`, then `train.py "
            "--model unet-vgg16 --init checkpoints/vgg16 --prompting none`"
        ),
        "draw the clusters of grey levels of images, and count them": (
            "`.venv/bin/python -m pp_jax.baselines IMAGES`"
        ),
        "score under every kind of prompt": (
            "`.venv/bin/python eval.py --checkpoint runs/NAME --prompt all`"
        ),
        "say beforehand what counts": "add `--primary nsd_1@point` (with `point` among `--prompt`)",
        "train the blind twin of a run": (
            "the run's own command with `--blind`, and `--out FOLDER-blind` if it had `--out "
            "FOLDER`; `eval.py` finds it by itself"
        ),
        "cross-validate": (
            "`.venv/bin/python train.py --folds 5`, then `eval.py --checkpoint "
            "runs/tiny-synthetic-box-none-folds5`"
        ),
        "know which filter, fusion or part to train helps": (
            "`.venv/bin/python train.py --ablation filters --data-dir DIR` (`fusions`, "
            "`policies`; `--dry-run` tells how long)"
        ),
        "know what filters do to weights as they are": (
            "`.venv/bin/python train.py --ablation zero-shot-filters --variant vit_b "
            "--checkpoint checkpoints/vit_b --data-dir DIR`"
        ),
        "answer it all on my own files": (
            "`make study SAM=sam_vit_b_01ec64.pth RSNA=DIR` (`MASKS=DIR`; `DRY=1` tells "
            "stages, time, disk; [`docs/study.md`](docs/study.md))"
        ),
        "hold out a finding": (
            "`.venv/bin/python train.py --data cxr_seg --data-dir DIR --train-on "
            "finding=COVID-19,SARS`, then `eval.py --checkpoint runs/NAME`"
        ),
        "average several seeds": (
            "`train.py --folds 5` and again with `--seed 1`, then `eval.py --methods "
            "NAME=FOLDER+FOLDER`"
        ),
        "submit to RSNA's challenge": (
            "`.venv/bin/python eval.py --checkpoint runs/NAME --prompt none --kaggle-submission "
            "submission.csv`"
        ),
        "compute in half precision on a GPU": (
            "add `--dtype bfloat16` (`train.py`, `eval.py`, `predict`); on CPUs it is the slower "
            "one"
        ),
        "say how attention is computed": (
            "`--attention chunked` (`plain`, `rows`, `cudnn`, `tiled`); by itself the one for "
            "the device"
        ),
        "measure it beside the official package, transformers and keras-hub": (
            "`.venv/bin/python -m benchmarks.encoder` (`decoder`, `automatic`, `training`); "
            "[`benchmarks/peers.py`](benchmarks/peers.py) says what to install"
        ),
        "measure fine-tuning": (
            "`.venv/bin/python -m benchmarks.cxr --data-dir DIR` (real opacities), `cached`, "
            "`iterative`, `plan` (TPUs)"
        ),
        "see how time and memory grow": "`.venv/bin/python -m benchmarks.growth`",
        "build the documentation": "`make docs` (`site/index.html`)",
        "execute the notebooks": (
            "`make notebooks` (or `.venv/bin/python docs/notebooks/run.py NAME`)"
        ),
        "see every choice": "`.venv/bin/python train.py --help`",
        "see the traceback behind an `error:` line": "`PP_TRACEBACK=1` before the command",
    }
)
