"""The page of a run on images: learning curves, scores, the images of the largest loss."""

from __future__ import annotations

from dataclasses import asdict, fields

from ..pages import Chapter, Page, Plot, Section, Table, to_html, to_svg
from . import _image_figures as figures
from ._history import best_epoch
from ._image_config import IMAGE_RECIPES
from ._image_evaluation import ImageEvaluation
from ._image_scores import METRIC_NAMES

_SHOWN_SKIPPED = 50


def page_of(evaluation: ImageEvaluation) -> str:
    """Return the page as one HTML file that needs nothing else."""
    e, c = evaluation, evaluation.config
    title = f"{c.model} on {c.data_path}"
    things, elements = ("images", "pixels") if c.dimension == 2 else ("volumes", "voxels")
    size = "×".join([str(e.facts.input_size)] * c.dimension)
    text = [
        f"{c.task}, group {c.point_group.name}, kind {c.kind}: {e.images:,} test {things} of {size} {elements} and "
        f"{e.facts.channels} channel{'s' * (e.facts.channels > 1)}.",
    ]
    if c.select == "best":
        text.append(
            f"The network is that of epoch {best_epoch(e.history)}, of the lowest error on the validation images."
        )
    sections = [_scores(e), _equivariance(e), _curves(e), *_errors(e), _worst(e), _settings(e)]
    if e.skipped:
        sections.append(_skipped(e))
    return to_html(Page(title, text, [Chapter("Test images", [], sections)]))


def number(value: str | float) -> str:
    """Write a cell of a table of scores."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def metric_rows(evaluation: ImageEvaluation) -> list[list[str]]:
    """Return the scores with their names, as text."""
    rows = [[METRIC_NAMES[name], number(value)] for name, value in evaluation.scores.metrics.items()]
    return [*rows, ["loss", number(evaluation.loss)]]


def _scores(e: ImageEvaluation) -> Section:
    table = [[number(value) for value in row] for row in e.scores.rows]
    return Section("Scores", tables=[Table(["score", "value"], metric_rows(e)), Table(list(e.scores.head), table)])


def _equivariance(e: ImageEvaluation) -> Section:
    what = "number, in standard deviations of the training targets," if e.facts.target_names else "probability"
    back = ", the output being transformed back" if e.config.task == "segmentation" else ""
    group = e.config.point_group.name
    text = (
        f"The largest change of a predicted {what} when a test image is transformed by an element of {group} "
        f"(which maps the grid of pixels to itself{back}): {e.largest_change:.1e}, over "
        f"{e.transformed:,} images. Rounding is about 1e-6."
    )
    return Section("Change under the group", [text])


def _curves(e: ImageEvaluation) -> Section:
    captions = {
        "loss": "Loss by epoch. That of the training images includes label smoothing and augmentation.",
        "error": "Error by epoch, " + ("mean absolute" if e.facts.target_names else "percent") + ".",
    }
    plots = [
        Plot(f"curve-{name}", caption, to_svg(figures.learning_curve(e.history, name), f"curve-{name}"))
        for name, caption in captions.items()
    ]
    return Section("Learning curves", plots=plots)


def _errors(e: ImageEvaluation) -> list[Section]:
    if e.scores.confusion is not None:
        figure = figures.confusion_matrix(e.scores.confusion, e.facts.classes)
        what = "pixels" if e.config.task == "segmentation" else "images"
        caption = f"Share of the {what} of each class (row) that were taken for each class (column)."
        return [Section("Confusion matrix", plots=[Plot("confusion", caption, to_svg(figure, "confusion"))])]
    figure = figures.scatter(e.targets, e.outputs, e.facts.target_names)
    caption = "Predicted against true numbers; on the line they are equal."
    return [Section("Predictions", plots=[Plot("scatter", caption, to_svg(figure, "scatter"))])]


def _worst(e: ImageEvaluation) -> Section:
    caption = f"The {len(e.worst)} test images of the largest loss, the largest first."
    figure = figures.worst_images(e.worst, e.facts)
    rows = [[worst.path, number(worst.loss)] for worst in e.worst]
    return Section(
        "Worst images", plots=[Plot("worst", caption, to_svg(figure, "worst"))], tables=[Table(["image", "loss"], rows)]
    )


def _settings(e: ImageEvaluation) -> Section:
    usual = {field.name: field.default for field in fields(e.config)} | IMAGE_RECIPES["modern"][e.config.task]
    changed = {k: v for k, v in asdict(e.config).items() if v != usual[k]}
    rows = [[name, str(value)] for name, value in changed.items()]
    return Section("Settings", ["What differs from the recipe modern."], tables=[Table(["setting", "value"], rows)])


def _skipped(e: ImageEvaluation) -> Section:
    text = f"{len(e.skipped)} files were left out."
    return Section("Skipped files", [text], tables=[Table(["file", "reason"], list(e.skipped[:_SHOWN_SKIPPED]))])
