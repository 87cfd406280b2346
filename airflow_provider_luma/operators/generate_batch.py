"""
Submits thousands of generations in one task.

The submits, and what a crash in them leaves: :mod:`airflow_provider_luma.submit.journal` and
:mod:`airflow_provider_luma.submit.batch`. What follows:

==================================  =====================================================================
act                                 if the process dies after this step
==================================  =====================================================================
the XComs are pushed                the next try reconnects to all that were created
the manifest is written             likewise; XCom does not name it yet
``execute`` returns                 likewise
Airflow records the success         the task is a success; cleared, it reconnects once
``returned`` is saved               the task is a success; cleared, it submits all again
==================================  =====================================================================
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_luma.airflow_exceptions import LumaTaskFailedError, fail_without_retry
from airflow_provider_luma.arguments import FailWhen, validate_amount, validate_count
from airflow_provider_luma.exceptions import LumaError, LumaValueError
from airflow_provider_luma.operators.base import BaseGenerateOperator
from airflow_provider_luma.relay.text import clean_text, redact_text
from airflow_provider_luma.submit.airflow_internals import Retries, is_success_recorded

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_luma.relay.generation import Generation
    from airflow_provider_luma.submit.batch import BatchSubmitter
    from airflow_provider_luma.submit.journal import Journal
    from airflow_provider_luma.submit.record_store import StatePlace
    from airflow_provider_luma.submit.result import SubmitManifest, SubmitResult

XCOM_SUBMITS_KEY = "luma_submits"


class LumaGenerateBatchOperator(BaseGenerateOperator):
    """
    Submit thousands of generations, which cost money, in one task, and return the ids of the Luma tasks.

    Every prompt is validated before the first is submitted. Each prompt is paid for once, as with
    :class:`~airflow_provider_luma.operators.generate.LumaGenerateOperator`: a journal is written before each
    submit, in the task state store of Airflow 3.3 and newer or at ``state_path``. A retry, and a task that is
    cleared before it succeeded, find every created task again, leave prompts alone that may have been charged
    for, and submit the rest. A task that is cleared after it succeeded submits everything again.

    Returns the ids in the order of the prompts; prompts without an id are left out. Pushes ``luma_submits``
    (``{"created": n, "rejected": {position: reason}, "unknown": [position, ...], "not_submitted": n}``), also
    when it fails; the ids are in XCom then, too. Positions count from 0. ``rejected_not_listed`` and
    ``unknown_not_listed`` are the numbers of prompts that ``rejected`` and ``unknown`` have no room for, and
    ``cost`` (``{"amount": n, "unit": text}``) is what the relay says that it charged; each is there only
    where it applies.

    A rate limit (429), such as that of concurrent generations, pauses all submits of the task and never
    fails it. A rejected prompt does not stop the others. An empty balance or a rejected key stop the batch at
    once, and so do a few rejections in a row that may be about all prompts, such as a 403 or a 404.

    :param prompts: a list, or an XComArg, of texts or of dicts with the fields of one generation, which are
        those of :class:`~airflow_provider_luma.operators.generate.LumaGenerateOperator`; this operator's own
        fields are their defaults. (templated)
    :param prompts_path: instead of ``prompts``, the URL of a table in object storage, which is read as a
        stream: ``.jsonl`` or ``.ndjson`` with a text or an object in each line, or ``.csv`` with a header.
        (templated)
    :param max_parallel: how many submits may be in flight at once. Default 8.
    :param max_generations: stop before more of the prompts than this are submitted, by all tries of the task
        together; prompts whose outcome is unknown count. Default: no limit.
    :param min_balance: stop when the account has less than this, in the relay's unit. It is checked before
        a submit, as often as the relay allows it: a stop, not a spending cap. Nothing is submitted while it
        cannot be checked. Default: no check.
    :param fail_when: when prompts that were rejected, left out, or whose outcome is unknown fail the task:
        ``"any"`` (default) when there is one, ``"all"`` only when no prompt has an id, ``"never"`` not.
    :param manifest: write ``manifest.jsonl`` beside the journal, which needs a ``state_path``, with a row for
        each prompt: ``position``, ``status`` (``created``, ``rejected``, ``unknown`` or ``not_submitted``),
        ``id`` and ``reason``. XCom then holds ``{"manifest": url, "created": n}`` instead of the ids, for
        lists of many thousands. Default False.
    :param luma_conn_id: the connection of type ``luma``. Default ``luma_default``. (templated)
    :param durable: keep the journal. Default True; without effect on Airflow 3.0 to 3.2 where there is no
        ``state_path``.
    :param state_path: a folder in object storage, such as ``s3://conn_id@bucket/_luma``, for the journal; as
        in :class:`~airflow_provider_luma.operators.generate.LumaGenerateOperator`.
    :param retries: Airflow's own. Default 2 on Airflow 3.3 and newer or with the argument ``state_path``,
        otherwise 0. With ``state_path`` only in the connection's extra on 3.0 to 3.2, set it to 2 yourself.
    :raises LumaTaskFailedError: as ``fail_when`` decides; not retried.
    :raises LumaNonRetryableError: when the relay rejects the key, the account's balance is too low, a prompt
        is invalid, or the journal cannot be read; not retried.
    :raises RelayTransientError: when too many submits in a row got no response; Airflow's ``retries`` apply,
        and a retry submits the rest.
    """

    template_fields: Sequence[str] = ("prompts", "prompts_path", *BaseGenerateOperator.template_fields)

    # Of the class, so that an operator can be copied before it runs: an event cannot.
    _stopped: threading.Event | None = None
    _is_killed = False
    _journal: Journal | None = None

    def __init__(
        self,
        *,
        prompts: Any = None,
        prompts_path: str | None = None,
        max_parallel: int = 8,
        max_generations: int | None = None,
        min_balance: float | None = None,
        fail_when: str = "any",
        manifest: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.prompts = prompts
        self.prompts_path = prompts_path
        self.max_parallel = max_parallel
        self.max_generations = max_generations
        self.min_balance = min_balance
        self.fail_when = fail_when
        self.manifest = manifest
        FailWhen.parse("fail_when", fail_when)
        validate_count("max_parallel", max_parallel)
        if max_generations is not None:
            validate_count("max_generations", max_generations, allow_zero=True)
        if min_balance is not None:
            validate_amount("min_balance", min_balance)
        self.on_success_callback = [*self.on_success_callback, _mark_returned]

    def execute(self, context: Context) -> list[str] | SubmitManifest:
        self._stopped = stopped = threading.Event()
        if self._is_killed:  # before there was anything to stop
            stopped.set()
        with fail_without_retry(self.luma_conn_id):
            generations = self._load_generations()
            place = self._open_place(context)
            if self.manifest:
                place.open_manifest()  # an error before anything is paid
            batch = self._open_batch(context, place, generations, stopped)
        retries = Retries(context)
        if not place.is_durable:
            retries.forbid()
        try:
            batch.run(self.max_parallel)
        finally:
            submits = batch.submits()
            returned = self._push(context, submits, len(generations))
        if self.manifest and not self._is_killed:  # a stop has no time for it
            url = self._write_manifest(place, submits, len(generations))
            returned = {"manifest": url, "created": len(submits.ids)}
            context["ti"].xcom_push("return_value", returned)
        if not place.is_durable and not submits.ids and not submits.unknown:
            retries.restore()
        self._raise_on_failures(place, submits, len(generations))
        return returned

    def on_kill(self) -> None:
        # In a signal handler: it takes no lock and talks to nobody.
        self._is_killed = True
        if self._stopped is not None:
            self._stopped.set()

    def _load_generations(self) -> list[Generation]:
        from airflow_provider_luma.submit.prompts import load_prompts_file, parse_prompts, warn_undocumented

        if (self.prompts is None) == (self.prompts_path is None):
            raise LumaValueError("Give either prompts or prompts_path")
        if self.prompts_path is not None:
            generations = load_prompts_file(self.prompts_path, self._fields())
        else:
            generations = parse_prompts(self.prompts, self._fields())
        warn_undocumented(generations)
        for position, generation in enumerate(generations):
            try:
                self.hook.client.validate_submit(generation)
            except LumaValueError as error:
                raise LumaValueError(f"prompts[{position}]: {error}") from None
        return generations

    def _open_batch(
        self, context: Context, place: StatePlace, generations: list[Generation], stopped: threading.Event
    ) -> BatchSubmitter:
        from airflow_provider_luma import metrics
        from airflow_provider_luma.sensors.wait_store import WaitStore
        from airflow_provider_luma.submit.batch import BatchSubmitter, SubmitLimits
        from airflow_provider_luma.submit.journal import Journal
        from airflow_provider_luma.submit.throttle import SubmitThrottle

        client, settings = self.hook.client, self.hook.settings
        self._journal = Journal(place, context["ti"].max_tries, generations)
        return BatchSubmitter(
            client,
            self._journal,
            generations,
            SubmitThrottle(self.max_parallel, settings.max_requests_per_minute, client.retry),
            SubmitLimits(self.max_generations, self._check_balance),
            stopped=stopped,
            report_progress=WaitStore(context).save_progress,
            count_rate_limit=lambda: metrics.count_rate_limit_pause(self.luma_conn_id),
        )

    def _check_balance(self) -> str | None:
        """Return why the balance is too low for another submit, ``None`` when it is not."""
        if self.min_balance is None:
            return None
        balance = self.hook.get_balance()
        if balance is None or balance.amount >= self.min_balance:
            return None
        return f"the balance of {balance} is below min_balance={self.min_balance:g}"

    def _push(self, context: Context, submits: SubmitResult, prompts: int) -> list[str] | SubmitManifest:
        """Push the results, also when the task fails; return the return value."""
        returned: list[str] | SubmitManifest = list(submits.ids.values())
        if self.manifest:  # there may be one of an earlier try, with the rows of the list as it was
            returned = {"manifest": None, "created": len(submits.ids)}
        summary = submits.summary()
        if template := self.hook.settings.task_page:  # of which the gallery makes the page of each task
            summary["page_template"] = template
        context["ti"].xcom_push(XCOM_SUBMITS_KEY, summary)
        context["ti"].xcom_push("return_value", returned)
        self.log.info("%s", submits.describe(prompts))
        return returned

    def _write_manifest(self, place: StatePlace, submits: SubmitResult, prompts: int) -> str:
        """Write the manifest, and return its URL."""
        manifest, url = place.open_manifest()
        try:
            manifest.read()  # that of an earlier try is replaced
            manifest.write(submits.manifest(prompts))
        except Exception as error:  # the store's, so that a retry may help
            raise LumaError(
                f"The manifest {redact_text(url)} cannot be written: {type(error).__name__}: "
                f"{clean_text(str(error))}. The ids are in the journal; a retry finds them"
            ) from error
        return url

    def _raise_on_failures(self, place: StatePlace, submits: SubmitResult, prompts: int) -> None:
        text = submits.describe(prompts)
        if submits.error is not None:
            self.log.error("%s", text)
            if submits.unknown:  # the doubt must not hide behind what stopped the batch
                submits.error.args = (f"{submits.error}. {text}",)
            with fail_without_retry(self.luma_conn_id):
                raise submits.error
        text = f"{text}. {_next_step(place, submits)}"
        if self._is_killed:
            raise LumaError(text)
        if submits.fails(prompts, FailWhen.parse("fail_when", self.fail_when)):
            raise LumaTaskFailedError(text)


def _next_step(place: StatePlace, submits: SubmitResult) -> str:
    """Say how to submit the rest, without advice that pays for a prompt again."""
    if submits.unknown:
        return (
            "Before you clear this task, check the relay's task log for those that may have been charged for"
        )
    return place.clear_hint("submit the prompts that have no Luma task")


def _mark_returned(context: Context) -> None:
    """Save that the ids were returned. Airflow calls success callbacks after it has recorded the success."""
    ti: Any = context["ti"]
    # Airflow 3.0 keeps the operator before rendering in context["task"].
    journal: Journal | None = ti.task._journal  # noqa: SLF001 - the operator's own callback
    if journal is not None and is_success_recorded(ti):
        journal.mark_returned()
