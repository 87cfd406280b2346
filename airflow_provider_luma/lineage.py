"""What the provider tells Airflow of the data it moved: asset events, hook lineage, OpenLineage datasets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import Asset, AssetAlias

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseHook, Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_luma.download.records import File

# As many as Airflow's own collector of hook lineage takes.
_OPENLINEAGE_LIMIT = 100


def fill_asset_events(
    context: Context, outlets: Sequence[Any], uri: str, extra: Mapping[str, int | str]
) -> None:
    """
    Say what is new in the assets that the user declared; an alias stands for the destination.

    :param outlets: those of the operator.
    :param uri: of the destination.
    :param extra: small, as it goes into Airflow's database.
    """
    for outlet in outlets:
        event = context["outlet_events"][outlet]
        if isinstance(outlet, AssetAlias):
            event.add(Asset(uri), extra=dict(extra))
        else:
            event.extra = {**event.extra, **extra}


def collect_hook_lineage(hook: BaseHook, files: Iterable[File]) -> None:
    """Tell Airflow's collector where each file came from and went to."""
    # Imported here, as it takes a second on Airflow 3.0.
    from airflow.providers.common.compat.sdk import get_hook_lineage_collector

    collector = get_hook_lineage_collector()
    for file in files:
        collector.add_input_asset(context=hook, uri=file["source"])
        collector.add_output_asset(context=hook, uri=file["uri"])


def openlineage_facets(files: Iterable[File]) -> OperatorLineage[Any, Any]:
    """Describe the first hundred files for OpenLineage, whose provider is asked for this."""
    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.openlineage.extractors import OperatorLineage

    def dataset(uri: str) -> Dataset:
        parts = urlsplit(uri)
        host = f"{parts.scheme}://{parts.netloc}" if parts.netloc else parts.scheme
        return Dataset(namespace=host, name=parts.path.lstrip("/") if parts.netloc else parts.path)

    some = list(islice(files, _OPENLINEAGE_LIMIT))
    return OperatorLineage(
        inputs=[dataset(file["source"]) for file in some], outputs=[dataset(file["uri"]) for file in some]
    )
