"""Links of subclasses, as docs/gallery.md describes them, in a process with that plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.airflow.harness import AIRFLOW

pytestmark = pytest.mark.skipif(AIRFLOW < (3, 1), reason="Airflow 3.0 gets no links of the gallery")

OPERATORS = """
from airflow_provider_luma.operators.luma import LumaDownloadOperator

class OurDownload(LumaDownloadOperator):
    pass
"""

PLUGIN = """
from airflow.providers.common.compat.sdk import AirflowPlugin
from airflow_provider_luma.links.clips import ClipsLink
from our_operators import OurDownload

class OurClipsLink(ClipsLink):
    operators = [OurDownload]

class OurPlugin(AirflowPlugin):
    name = "ours"
    operator_extra_links = [OurClipsLink()]
"""

SCRIPT = """
import json
import airflow.serialization.serialized_objects as serialized
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.sdk import DAG
from airflow_provider_luma.operators.luma import LumaDownloadOperator
from our_operators import OurDownload

with DAG("links", schedule=None) as dag:
    arguments = {"luma_task_ids": ["x"], "destination": "file:///tmp/x"}
    LumaDownloadOperator(task_id="theirs", **arguments)
    OurDownload(task_id="ours", **arguments)
    OurDownload.partial(task_id="mapped", destination="file:///tmp/x").expand(luma_task_ids=[["x"]])
codec = getattr(serialized, "DagSerialization", None) or serialized.SerializedDAG
made = codec.from_dict(codec.to_dict(dag))
key = TaskInstanceKey("links", "ours", "run", map_index=-1)
print("RESULT" + json.dumps({
    task.task_id: [link.get_link(task, ti_key=key) for link in task.operator_extra_links]
    for task in made.task_dict.values()
}))
"""


def test_a_subclass_has_the_link_by_a_plugin(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/ours.py").write_text(PLUGIN)
    (tmp_path / "our_operators.py").write_text(OPERATORS)
    environment = os.environ | {"AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    link = ["/luma/clips/links/run/ours/-1"]
    assert json.loads(done.stdout.rpartition("RESULT")[2]) == {"theirs": link, "ours": link, "mapped": link}
