"""The metadata that Airflow discovers of this package. Light: Airflow calls it in every process."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    return {
        "package-name": "airflow-provider-luma",
        "name": "Luma",
        "description": "Submits Luma video generations to an API relay, waits for batches of them "
        "and downloads the finished videos to object storage.",
        "integrations": [
            {
                "integration-name": "Luma",
                "external-doc-url": "https://lumalabs.ai/dream-machine",
                "tags": ["service"],
            }
        ],
        "hooks": [{"integration-name": "Luma", "python-modules": ["airflow_provider_luma.hooks.luma"]}],
        "sensors": [{"integration-name": "Luma", "python-modules": ["airflow_provider_luma.sensors.luma"]}],
        "operators": [
            {
                "integration-name": "Luma",
                "python-modules": [
                    "airflow_provider_luma.operators.download",
                    "airflow_provider_luma.operators.generate",
                    "airflow_provider_luma.operators.generate_batch",
                    "airflow_provider_luma.operators.luma",
                ],
            }
        ],
        "triggers": [
            {
                "integration-name": "Luma",
                "python-modules": [
                    "airflow_provider_luma.triggers.event",
                    "airflow_provider_luma.triggers.luma",
                ],
            }
        ],
        "extra-links": [
            "airflow_provider_luma.links.clips.ClipsLink",
            "airflow_provider_luma.links.clips.RelayPageLink",
        ],
        "plugins": [{"name": "luma", "plugin-class": "airflow_provider_luma.ui.plugin.LumaPlugin"}],
        "config": {"luma": _config()},
        "connection-types": [_connection_type()],
    }


def _config() -> dict[str, Any]:
    return {
        "description": "The gallery of clips in Airflow's UI.",
        "options": {
            "gallery_paths": {
                "description": "What the gallery may show: paths, separated by commas, that the files of "
                "records must be below. Of the form s3://conn_id@bucket/prefix, gs://conn_id@bucket/prefix, "
                "abfs://conn_id@container/prefix or file:///folder; the connection signs short-lived URLs, a "
                "local folder is streamed by the api-server. {dag_id} in a path stands for the Dag's id. "
                "Empty: no file is served.",
                "version_added": None,
                "type": "string",
                "example": "s3://aws_default@my-bucket/clips, file:///data/clips/{dag_id}",
                "default": "",
            }
        },
    }


def _connection_type() -> dict[str, Any]:
    return {
        "connection-type": "luma",
        "hook-class-name": "airflow_provider_luma.hooks.luma.LumaHook",
        "hook-name": "Luma relay",
        "ui-field-behaviour": {
            "hidden-fields": ["login", "schema"],
            "relabeling": {"host": "Relay URL", "password": "API key"},
            "placeholders": {
                "host": "https://api.quickrouter.ai (the default; https unless it says http://)",
                "port": "Only when the relay does not use its scheme's own port",
                "password": "The relay's API key, without the word Bearer",
            },
        },
        "conn-fields": {
            "timeout": {
                "label": "Timeout",
                "description": "Seconds to wait for a connection and for each read of a response.",
                "schema": {"type": ["number", "null"], "default": 30, "minimum": 0},
            },
            "request_timeout": {
                "label": "Request timeout",
                "description": "Seconds from the start of a request to the last byte of its response.",
                "schema": {"type": ["number", "null"], "default": 120, "minimum": 0},
            },
            "max_response_bytes": {
                "label": "Largest response",
                "description": "Bytes of a response of the relay, once it is decompressed.",
                "schema": {"type": ["integer", "null"], "default": 8388608, "minimum": 1},
            },
            "batch_size": {
                "label": "Batch size",
                "description": "How many task ids one request queries. No relay documents a limit.",
                "schema": {"type": ["integer", "null"], "default": 100, "minimum": 1},
            },
            "max_in_flight": {
                "label": "Requests at once",
                "description": "How many status requests the triggerer has in flight at once.",
                "schema": {"type": ["integer", "null"], "default": 4, "minimum": 1},
            },
            "max_requests_per_minute": {
                "label": "Requests a minute",
                "description": "How many status requests the triggerer, and how many submits one batch task, "
                "sends at most in a minute. Empty: as many as are due.",
                "schema": {"type": ["number", "null"], "default": None, "minimum": 0},
            },
            "verify": {
                "label": "Verify TLS certificates",
                "description": "Turn off only for a relay of your own. "
                "The path of a CA bundle can be given in the extra JSON instead.",
                "schema": {"type": ["boolean", "null"], "default": True},
            },
            "proxies": {
                "label": "Proxies",
                "description": 'As the requests library takes them: {"https": "http://proxy:3128"}. '
                "Empty: the proxies of the environment.",
                "schema": {"type": ["object", "null"], "default": None},
            },
            "allowed_download_hosts": {
                "label": "Allowed download hosts",
                "description": "Host names, separated by commas, that videos may be downloaded from although "
                "their address is not public.",
                "schema": {"type": ["string", "null"], "default": None},
            },
            "task_page": {
                "label": "Page of a task",
                "description": "URL of the relay's own page of a task, with {id} for its id, such as "
                "https://relay.example.com/tasks/{id}. Airflow's page of a generate task links to it.",
                "schema": {"type": ["string", "null"], "default": None},
            },
            "state_path": {
                "label": "State path",
                "description": "A folder in object storage, such as s3://conn_id@bucket/_luma, for the "
                "records of submits. Empty: Airflow's task state store, where there is one.",
                "schema": {"type": ["string", "null"], "default": None},
            },
        },
    }
