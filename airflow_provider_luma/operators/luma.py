"""The operators of this provider: submit generations, and download the media of completed Luma tasks."""

from __future__ import annotations

from airflow_provider_luma.operators.download import LumaDownloadOperator
from airflow_provider_luma.operators.generate import LumaGenerateOperator
from airflow_provider_luma.operators.generate_batch import LumaGenerateBatchOperator

__all__ = ["LumaDownloadOperator", "LumaGenerateBatchOperator", "LumaGenerateOperator"]
