"""Generate configs/README.md, a table of every setting, from the code: python -m scripts.write_settings"""

import sys
from pathlib import Path
from typing import get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fgseg.config.errors import accepted_values
from fgseg.config.settings import RunConfig
from search.study.config import SearchConfig
from search.study.space import Range, SpaceFile

TARGET = Path(__file__).parent.parent / "configs" / "README.md"
HEAD = """# Settings

<!-- Written by scripts/write_settings.py from the code; change the docstrings there and run it again. -->

A configuration file (`--config`) is YAML with the sections below; settings that it omits have their defaults. A file of
`spaces/` overrides it, except its section `search.space`, and `--set KEY=VALUE` overrides both. A mistake is reported
in one line before anything starts.

| file | what it is |
| :--- | :--- |
| `quickstart.yaml` | the default: procedural scenes, the checkpoint `streets` of this package, 8 trials |
| `finetune.yaml` | for a checkpoint: a complete recipe with a searched learning rate |
| `cityscapes.yaml` | the protocol of the source: SegFormer-B0 on Cityscapes |
| `accelerate.yaml` | for `accelerate launch --config_file`: several processes train one model |
| `labels/<set>.yaml` | a label set: the classes in order, with name, colour, Cityscapes ids, aliases and `thin: true` |
| `spaces/<family>.yaml` | a family: its title, fixed settings, and the range and start of every searched setting |
| `cluster/` | examples for `ray up`, KubeRay and Docker |

The Cityscapes reader takes training frames from the official `train` folder, and validation and test frames from
`val`, or from `train` if `val` is empty. Only `search.compare` and `fgseg.evaluate` read the test split.
"""
HEADINGS = ("| setting | accepts | default | meaning |", "| :--- | :--- | :--- | :--- |")
RUN = """## One model

Read by `search.run`, `search.compare`, `fgseg.train` and `fgseg.evaluate`, from the file and from `--set`.
"""
FITS = """### Pictures of another shape

Training, evaluation and prediction see pictures through one geometry: the size of the frames and `data.fit`. A picture
whose aspect ratio differs from that of the frames by at most 2 % is resized to a frame. For any other picture:

- `stretch` resizes it to a frame, which changes its proportions. `fgseg.predict` does the same with a photo, and
  resizes the logits to the photo.
- `pad` resizes it to fit into a frame, which is filled to the right of the picture or below it: the image with grey
  (114, the mean of ImageNet), the labels with void, which no loss and no score counts, whatever `data.void` is.
  `fgseg.predict` does the same with a photo, cuts off the logits of the filling and resizes the others to the photo.
- `crop` resizes it to cover a frame, and takes the central part; of an odd remainder, the larger part is cut below or
  at the right. `fgseg.predict` resizes a photo to cover a frame, too, but cuts nothing: a window of the size of a frame
  slides over the photo, and logits are blended where windows overlap.

Images are resized bilinearly, labels by nearest neighbour. With `pad` sides are rounded to whole pixels, with `crop` a
side beyond the frame to a multiple of 4. Procedural scenes are drawn at the size of the frames and fit as they are.

`data.crop` is something else: the size of random windows of the frames, in which a model is trained. Such a model is
evaluated and predicts in windows of this size, whatever `data.fit` is.

A command that trains prints a line if the median aspect ratio of the pictures differs from that of the frames by more
than 5 %. An exported model stores the geometry in its `preprocessor_config.json` (`size`, `fit`, and `crop_size` for
`data.crop`). Models without `fit`, of earlier versions or of other tools, stretch. `fgseg.predict --fit crop` keeps the
proportions of photos for any model. `transformers.pipeline` can only stretch: for `pad` and `crop` its masks are those
of `fgseg.predict` where a photo has the shape of the frames.
"""
SOURCE = """## Differences from the run of the source

`cityscapes.yaml` follows the protocol of the source, which trains with fp16 on a GPU. These differences are known:

- **Logits of the baseline.** The source's baseline computes its loss inside the model, under autocast: logits are
  resized to the labels in fp16, and cross-entropy is float32. Here every family resizes logits in float32, as the
  losses of the source's other approaches do.
- **Precision of evaluation.** The source does not show it; its `Trainer` evaluates in the precision of training. Here
  evaluation has the precision of training, too: with fp16 the forward pass runs under autocast, and logits are resized
  and compared in float32.
- **Image processor.** The source resizes images and labels to 512x1024, then calls an image processor that it does not
  show. A `SegformerImageProcessor` of the default size resizes the images once more, to 512x512, and leaves the labels
  as they are; the source may have trained so. Here the model sees 512x1024. `data.width=512` is not the same, since the
  labels then have 512x512 pixels, too.
- **Skipped steps.** As in the source, the learning rate falls with every step, also with those that fp16 skips since a
  gradient overflowed: its `Trainer` does not see that fused AdamW skips them. Unlike there, a batch whose loss is not
  finite is left out of the mean training loss, and more than 10 % of such images in an epoch end the trial.

Compare differences between families with those of the source rather than single scores.
"""
SEARCH = """## The search

The section `search` of the file. Each setting is also a flag of `search.run`, with dashes: `max_concurrent` is
`--max-concurrent`. The exception is `register_model`, which `--no-register` switches off.
"""
SPACE = """## A space

The format of `spaces/<family>.yaml`. `--set search.KEY.PART=VALUE` changes a range; fixing a searched setting by
`--set KEY=VALUE` removes it from the search. `class_weights.<thin>` stands for the weight of every thin class of the
label set; an entry of a single class overrides it.

AdamW is almost invariant to the overall scale of the loss. Therefore a family fixes the weight of cross-entropy and
searches the other weights relative to it.

A configuration file may add searched settings to every family. Where a family has the same setting, the range of the
file replaces its range or its fixed value.

```yaml
search:
  space:
    train.lr: {low: 1.0e-5, high: 3.0e-4, log: true, start: 6.0e-5}
```
"""


def text() -> str:
    """Return the content of configs/README.md."""
    sections = [f"### {name}\n\n{section(name, field)}" for name, field in RunConfig.model_fields.items()]
    search = table("", SearchConfig)
    space = table("", SpaceFile) + "\n" + table("search.KEY", Range)
    return "\n".join([HEAD, RUN, *sections, FITS, SOURCE, SEARCH, search, SPACE, space])


def section(name: str, field: FieldInfo) -> str:
    """Return the table of a section of the settings; that of a mapping, such as class_weights, has one row."""
    if get_origin(field.annotation) is not dict:
        return table(name, field.annotation)
    value = FieldInfo.from_annotation(get_args(field.annotation)[1])
    value.default, value.description = 1.0, field.description
    return "\n".join([*HEADINGS, row(f"{name}.CLASS", value), ""])


def table(section: str, model: type[BaseModel] | None) -> str:
    """Return the settings of a section as a Markdown table."""
    assert model is not None
    prefix = f"{section}." if section else ""
    rows = [row(f"{prefix}{name}", field) for name, field in model.model_fields.items()]
    return "\n".join([*HEADINGS, *rows, ""])


def row(name: str, field: FieldInfo) -> str:
    """Return the table row of a setting: name, accepted values, default and meaning."""
    meaning = " ".join((field.description or "").split()).replace("<", "&lt;")
    assert meaning, f"{name} has no docstring"
    cells = (f"`{name}`", accepts(field), default(field), meaning)
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def accepts(field: FieldInfo) -> str:
    """Describe the values that a setting accepts."""
    words = {dict: "a mapping", tuple: "a list of names", bool: "true or false"}
    kind = getattr(field.annotation, "__origin__", field.annotation)
    return words.get(kind) or accepted_values(field)


def default(field: FieldInfo) -> str:
    """Describe the default of a setting."""
    if field.default_factory is not None:
        return "empty"
    if field.default is PydanticUndefined:
        return "must be given"
    return {"None": "none", "True": "true", "False": "false", "()": "empty"}.get(
        str(field.default), f"`{field.default}`"
    )


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
    print(f"{TARGET} written", file=sys.stderr)
