"""The recipe: one strict YAML file for a whole run. Imports no torch, so that a wrong recipe answers at once.

Every key has a type, a range and a default; an unknown key is refused with the nearest valid name; combinations
that can't work are refused with the reason. ``load_recipe`` lists all problems together.
"""

from harness.recipe.ann_settings import AnnSettings
from harness.recipe.data_settings import Columns, DataSettings, QrelsNames, StreamSettings, Texts
from harness.recipe.evaluation_settings import Bars, BenchSettings, EvaluateSettings, OutsideSet, ReportSettings
from harness.recipe.export_settings import ExportSettings, ParitySettings
from harness.recipe.impossible import impossible, impossible_with
from harness.recipe.reading import (
    apply_overrides,
    dump_recipe,
    load_recipe,
    parse_yaml,
    unedited,
    validate_recipe,
)
from harness.recipe.section import SYSTEMS, Metric, Pooling, Prompts, Section, SetName, System, TextKind
from harness.recipe.settings import (
    AlignSettings,
    DocumentSettings,
    EmbedSettings,
    EncoderSettings,
    LaunchSettings,
    LayerRule,
    LoraSettings,
    LossSettings,
    MineSections,
    MineSettings,
    ModelScores,
    Recipe,
    RefineSettings,
    StudentSettings,
    TeacherSettings,
    TrackingSettings,
    TrainingSettings,
    VectorFiles,
)

__all__ = [
    "AlignSettings",
    "AnnSettings",
    "Bars",
    "BenchSettings",
    "Columns",
    "DataSettings",
    "DocumentSettings",
    "EmbedSettings",
    "EncoderSettings",
    "EvaluateSettings",
    "ExportSettings",
    "LaunchSettings",
    "LayerRule",
    "LoraSettings",
    "LossSettings",
    "Metric",
    "MineSections",
    "MineSettings",
    "ModelScores",
    "OutsideSet",
    "ParitySettings",
    "Pooling",
    "Prompts",
    "QrelsNames",
    "Recipe",
    "RefineSettings",
    "ReportSettings",
    "SYSTEMS",
    "Section",
    "SetName",
    "StreamSettings",
    "StudentSettings",
    "System",
    "TeacherSettings",
    "TextKind",
    "Texts",
    "TrackingSettings",
    "TrainingSettings",
    "VectorFiles",
    "apply_overrides",
    "dump_recipe",
    "impossible",
    "impossible_with",
    "load_recipe",
    "parse_yaml",
    "unedited",
    "validate_recipe",
]
