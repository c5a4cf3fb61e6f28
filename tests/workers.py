"""Runs the tests in several processes: forked from the one that has imported and collected, so that each starts in no
time.

pytest --workers 3            # a module is one process's, which asks for the next when it is at its last test
"""

from collections.abc import Iterator
from itertools import groupby
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import pytest

from tests.processes import fork_template

_FORK = get_context("fork")


class Worker(NamedTuple):
    """A process that runs tests, as the one that deals them out knows it."""

    process: Any
    pipe: Connection
    running: list[tuple[str, tuple[str, int | None, str]]]
    """The test that it is at, if any: its id and where it stands."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> object:
    """Deal the modules out, if there are several processes and nothing is wrong so far."""
    config = session.config
    if config.option.collectonly or session.testsfailed:
        return None
    fork_template()
    if config.option.workers < 2:
        return None
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None:
        reporter.showfspath = False  # their modules take turns
    config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # one for all
    modules = [list(items) for _, items in groupby(session.items, lambda item: item.path)]
    deal(session, modules, min(config.option.workers, len(modules)))
    return True


def deal(session: pytest.Session, modules: list[list[pytest.Item]], count: int) -> None:
    """Start processes, give each a module whenever it asks, and report what they say."""
    workers = [_start(session, modules) for _ in range(count)]
    left, ran = iter(range(len(modules))), 0
    try:
        while workers:
            ready = wait([worker.pipe for worker in workers], timeout=1)
            for worker in list(workers):
                if worker.pipe not in ready:
                    if worker.process.is_alive() or worker.pipe.poll():
                        continue
                    workers.remove(worker)
                    _report_death(session, worker)
                    continue
                try:
                    said, *values = worker.pipe.recv()
                except EOFError:
                    workers.remove(worker)
                    worker.process.join()
                    _report_death(session, worker)
                    continue
                if said == "next":
                    worker.pipe.send(next(left, None))
                elif said == "end":
                    workers.remove(worker)
                    worker.process.join()
                else:
                    ran += said == "logfinish"
                    _tell(session, worker, said, values)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
    finally:
        for worker in workers:
            worker.process.terminate()
            worker.process.join()
    missed = sum(map(len, modules)) - ran
    if missed and not session.testsfailed:
        raise session.Failed(f"{missed} tests did not run")


def _start(session: pytest.Session, modules: list[list[pytest.Item]]) -> Worker:
    ours, theirs = _FORK.Pipe()
    process = _FORK.Process(target=_work, args=(session, modules, theirs))
    process.start()
    theirs.close()
    return Worker(process, ours, [])


def _tell(session: pytest.Session, worker: Worker, said: str, values: list[Any]) -> None:
    """Have the plugins of this process hear what those of a worker heard."""
    hook = session.config.hook
    if said == "logstart":
        worker.running[:] = [(values[0], values[1])]
        hook.pytest_runtest_logstart(nodeid=values[0], location=values[1])
    elif said == "logfinish":
        worker.running.clear()
        hook.pytest_runtest_logfinish(nodeid=values[0], location=values[1])
    elif said == "report":
        report = hook.pytest_report_from_serializable(config=session.config, data=values[0])
        hook.pytest_runtest_logreport(report=report)
    else:
        message, when, nodeid, location = values
        arguments = {"warning_message": message, "when": when, "nodeid": nodeid, "location": location}
        hook.pytest_warning_recorded.call_historic(kwargs=arguments)


def _report_death(session: pytest.Session, worker: Worker) -> None:
    nodeid, location = worker.running[0] if worker.running else ("between two tests", ("tests", None, ""))
    said = f"the process that ran it ended with code {worker.process.exitcode}"
    report = pytest.TestReport(nodeid, location, {}, "failed", said, "call")
    session.config.hook.pytest_runtest_logreport(report=report)


# --- in a worker ------------------------------------------------------------------------------------------------------


class _Sender:
    """Sends what pytest would show."""

    def __init__(self, config: pytest.Config, pipe: Connection) -> None:
        self._config, self._pipe = config, pipe

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self._pipe.send(("logstart", nodeid, location))

    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self._pipe.send(("logfinish", nodeid, location))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._pipe.send(("report", data))

    def pytest_warning_recorded(self, warning_message: Any, when: str, nodeid: str, location: Any) -> None:
        warning_message.source = None  # what it was about stays here
        self._pipe.send(("warning", warning_message, when, nodeid, location))


def _work(session: pytest.Session, modules: list[list[pytest.Item]], pipe: Connection) -> None:
    config = session.config
    config.pluginmanager.unregister(name="terminalreporter")
    capture = config.pluginmanager.getplugin("capturemanager")
    capture.stop_global_capturing()  # into files that all would share
    capture.start_global_capturing()
    config.pluginmanager.register(_Sender(config, pipe))
    items = _items(modules, pipe)
    item = next(items, None)
    while item is not None:
        following = next(items, None)  # what it shares with this one stands until then
        config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        item = following
    _save_coverage(config)
    pipe.send(("end",))


def _items(modules: list[list[pytest.Item]], pipe: Connection) -> Iterator[pytest.Item]:
    while True:
        pipe.send(("next",))
        number = pipe.recv()
        if number is None:
            return
        yield from modules[number]


def _save_coverage(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("_cov"):
        from coverage import Coverage

        if (measured := Coverage.current()) is not None:
            measured.stop()
            measured.save()
