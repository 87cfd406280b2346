"""
Asset events, hook lineage and OpenLineage datasets of downloaded files.

All of it comes after the fact: the files are there, so that an error here is a warning, never a failed task.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import Asset, AssetAlias

from airflow_provider_luma.relay.text import clean_text

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseHook, Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_luma.download.records import File

log = logging.getLogger(__name__)

# As many as Airflow's own collector of hook lineage takes.
_MAX_DATASETS = 100


@contextmanager
def log_errors(description: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the files are downloaded, whatever happens here
        log.warning("Could not update %s: %s: %s", description, type(error).__name__, clean_text(str(error)))


def update_outlet_events(
    context: Context, outlets: Sequence[Any], uri: str, summary: Mapping[str, Any]
) -> None:
    """
    Add the numbers to the events of the assets that the user declared; an alias gets the destination.

    :param outlets: those of the operator; some may not be assets.
    :param uri: of the destination.
    :param summary: small, as it goes into Airflow's database.
    """
    for outlet in outlets:
        with log_errors(f"the event of the outlet {type(outlet).__name__}"):
            event = context["outlet_events"][outlet]
            if isinstance(outlet, AssetAlias):
                event.add(Asset(uri), extra=dict(summary))
            else:
                event.extra = {**event.extra, **summary}


def collect_hook_lineage(hook: BaseHook, files: Iterable[File]) -> None:
    """Tell Airflow's collector where each file came from and went to."""
    with log_errors("hook lineage"):
        # Imported here, as it takes a second on Airflow 3.0.
        from airflow.providers.common.compat.sdk import get_hook_lineage_collector

        collector = get_hook_lineage_collector()
        for file in islice(files, _MAX_DATASETS):
            with log_errors(f"hook lineage of {file['uri']}"):
                collector.add_output_asset(context=hook, uri=file["uri"])
                collector.add_input_asset(context=hook, uri=file["source"])


def openlineage_facets(files: Iterable[File]) -> OperatorLineage[Any, Any]:
    """Describe the first hundred files for OpenLineage, whose provider calls this."""
    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.openlineage.extractors import OperatorLineage

    def dataset(uri: str) -> Dataset:
        parts = urlsplit(uri)
        host = f"{parts.scheme}://{parts.netloc}" if parts.netloc else parts.scheme
        return Dataset(namespace=host, name=parts.path.lstrip("/") if parts.netloc else parts.path)

    sampled = list(islice(files, _MAX_DATASETS))
    return OperatorLineage(
        inputs=[dataset(file["source"]) for file in sampled],
        outputs=[dataset(file["uri"]) for file in sampled],
    )
