"""The mutants of models that take turns: what may run together, whose turn it is, and the life of a model's server.

:mod:`tests.mutants` runs them.
"""

from __future__ import annotations

from typing import Final

from tests.edits import Edit, in_method

TESTS_OF: Final[dict[str, tuple[str, ...]]] = {
    "sets": ("tests/core/test_set_expressions.py",),
    "plans": (
        "tests/core/test_matrix_random.py::test_the_best_plan_of_all",
        "tests/core/test_matrix_random.py::test_the_best_plan_where_each_model_occurs_once",
        "tests/core/test_matrix.py",
    ),
    "groups": ("tests/core/test_groups.py",),
    # The state machine first: what single tests see, it should see too.
    "swap": (
        "tests/core/test_swap_machine.py::TestSwapMachine",
        "tests/core/test_swap.py",
        "tests/core/test_swap_stops.py",
        "tests/core/test_swap_turns.py",
    ),
    "turns": (
        "tests/core/test_swap.py",
        "tests/core/test_swap_stops.py",
        "tests/core/test_swap_turns.py",
        "tests/models/test_better_than_llama_swap.py",
    ),
    "bypass": (
        "tests/core/test_swap_machine.py::test_everybody_is_served_within_the_bound",
        "tests/core/test_swap_turns.py",
    ),
    "router": ("tests/models/test_router_machine.py", "tests/models/test_router.py"),
    "life": ("tests/core/test_lifecycle.py", "tests/core/test_lifecycle_backoff.py"),
}
"""The tests for mutants whose names begin so."""


MUTANTS: Final[dict[str, tuple[Edit, ...]]] = {
    # ---- what may run together ----
    "sets: | binds tighter than &": (
        Edit("core/set_expressions.py", r'self\.join\("all", level\.together\)', 'self.join("any", level.together)'),
        Edit(
            "core/set_expressions.py",
            r'self\.join\("any", level\.alternatives\)',
            'self.join("all", level.alternatives)',
        ),
        Edit(
            "core/set_expressions.py",
            r'case "and":\n( +wanted = True\n +)case "or":',
            r'case "or":\n\1case "and":',
        ),
    ),
    "plans: of equal alternatives the last": (
        Edit("core/cover.py", r"next\(child for child in children if", "next(child for child in children[::-1] if"),
    ),
    "plans: of equal sets the last": (
        Edit("core/matrix.py", r"(best, holder, least = found, permitted, found\.value)$", r"\1 - 1"),
    ),
    "plans: who was used last goes first": (
        Edit(
            "core/matrix.py",
            r"for moment in sorted\(set\(used\.values\(\)\)\):",
            r"for moment in sorted(set(used.values()), reverse=True):",
        ),
    ),
    "plans: who is busy goes like any other": (
        Edit("core/matrix.py", in_method("_weights", r"if name in busy:"), r"\1if name is None:"),
    ),
    "plans: all cost the same": (Edit("core/matrix.py", r"int\(self\._cost\(name\) \* self\._unit\) \* one", "one"),),
    "plans: a pin weighs nothing": (
        Edit("core/matrix.py", in_method("_weights", r"if name in self\._pinned:"), r"\1if name is None:"),
    ),
    "plans: what is pinned goes": (Edit("core/planning.py", r"^    if held:", "    if False:"),),
    "plans: the bounds cut what is just as good": (
        Edit("core/cover.py", r"(value \+ weigh\.of\(mask\) \+ most) < floor:", r"\1 <= floor:"),
    ),
    "plans: what can still be covered is not counted": (
        Edit(
            "core/cover.py", r"most = min\(best, private \+ weigh\.of\(reach & ~mask\)\)", "most = min(best, private)"
        ),
    ),
    "plans: of what covers the same the last stays": (
        Edit("core/cover.py", r"lead == 0 and number < place", "lead == 0 and number > place"),
    ),
    "groups: the group of those that run says who is put out": (
        Edit(
            "core/groups.py",
            r"return group\.exclusive and not self\._groups\[others\]\.persistent",
            "return self._groups[others].exclusive and not self._groups[others].persistent",
        ),
    ),
    # ---- swaps: what must never be, whoever comes when ----
    "swap: a report of an older load counts": (
        Edit(
            "core/swap_fleet.py",
            r"self\._swaps\.get\(identity\)",
            "self._swaps.get(identity) or next(iter(self._swaps.values()), None)",
        ),
    ),
    "swap: a report of an older stop counts": (
        Edit(
            "core/swap_fleet.py",
            r"model = self\._stops\.pop\(identity, None\)",
            "model = self._stops.pop(identity if identity in self._stops else next(iter(self._stops), 0), None)",
        ),
    ),
    "swap: the end of an older process counts": (
        Edit(
            "core/swap.py",
            r"model\.phase is Phase\.READY and model\.loaded_by == identity:",
            "model.phase is Phase.READY:",
        ),
    ),
    "swap: a model with requests in flight goes": (
        Edit("core/swap_turns.py", in_method("_may_start", r"if in_flight or coming"), r"\1if coming"),
    ),
    "swap: a load begins beside what goes for it": (
        Edit("core/swap_fleet.py", in_method("_may_load", r"if not going:"), r"\1if target.name not in going:"),
    ),
    "swap: a load begins beside what goes for others": (
        Edit("core/swap_fleet.py", r"return set\(with_them\.evict\) <= set\(without\.evict\)", "return True"),
    ),
    "swap: a better priority gives up a load that others wait for": (
        Edit(
            "core/swap_turns.py",
            r"\(model\.waiting or not self\._options\.abort_unwanted\)",
            "(model.waiting and self.rank(claim, now) > self.rank(model, now) or not self._options.abort_unwanted)",
        ),
    ),
    "swap: unload does not wait for requests": (
        Edit("core/swap.py", in_method("_unload", r" and not at_once"), r"\1 and at_once"),
    ),
    "swap: who waits is forgotten when its load fails": (
        Edit("core/swap.py", r"self\._refuse\(model, LOAD_FAILED, error\)", "model.queue.refuse_waiting(LOAD_FAILED)"),
    ),
    # ---- turns: who, and when ----
    "turns: nobody rings for who was kept": (
        Edit("core/swap_turns.py", in_method("next_alarm", r"alarm = min\(alarm, due\)"), r"\1pass"),
    ),
    "turns: what was due is decided after what came later": (
        Edit("core/swap.py", in_method("_catch_up", r"if now >= self\._alarm:"), r"\1if False:"),
    ),
    "turns: nothing is reserved of what goes for others": (
        Edit("core/swap_turns.py", r"held\.update\(evict\)", "pass"),
    ),
    "bypass: a place is kept from those alone that would put out who waits": (
        Edit("core/swap_turns.py", r" or not self\._leaves_alone\([^\n]*\):", ":"),
    ),
    "turns: a ready model serves newcomers of any priority": (
        Edit("core/swap_turns.py", r"worst = min\(worst, claim\.queue\.head\(\)\.priority\)", "pass"),
    ),
    "turns: a model goes before those are served that it was loaded for": (
        Edit("core/swap_turns.py", r"model\.turn = model\.waiting", "model.turn = 0"),
    ),
    "turns: a wait at the limit of its own model counts": (
        Edit("core/swap_turns.py", r"return model\.cutoff < math\.inf and [^\n]*", "return True"),
    ),
    "turns: a model goes after its ttl though somebody waits": (
        Edit("core/swap_turns.py", r"elif not model\.waiting and self\._end_of_life", "elif self._end_of_life"),
    ),
    "turns: one more may wait": (
        Edit("core/swap_queue.py", in_method("full_for", r">= self\._bound"), r"\1> self._bound"),
    ),
    "turns: what is on its way out counts": (
        Edit("core/swap_fleet.py", in_method("considered", r"return self\.committed\(\)"), r"\1return self.there()"),
    ),
    # ---- with streams of requests, on a clock ----
    "bypass: who was kept closes nothing": (
        Edit("core/swap_turns.py", r"ends = ends or not overdue or [^\n]*", "pass"),
    ),
    "bypass: who was kept waits for residency": (
        Edit("core/swap_turns.py", r"\(not overdue and self\.resident\(model, now\)\)", "self.resident(model, now)"),
    ),
    "bypass: who was kept stands by its priority": (
        Edit(
            "core/swap_turns.py",
            r"return \(0, self\.since\(model\), head\.number\)",
            "return (0, head.priority, head.number)",
        ),
    ),
    "bypass: no place is reserved": (Edit("core/swap_turns.py", r"worlds\.append\(\(claim\.name, [^\n]*", "pass"),),
    # ---- what acts on it all ----
    "router: who leaves the wait stays in the queue": (
        Edit("models/lease.py", r"outcome\.capture\(self\._driver\.cancelled, self\)", "None"),
    ),
    "router: who is refused is not woken": (
        Edit("models/lease.py", in_method("refused", r"self\._wake\(\)"), r"\1pass"),
    ),
    "router: a load that is given up goes on": (
        Edit("models/_driver.py", r"\.loads\.pop\(effect\.load\)\.cancel\(\)", ".loads.pop(effect.load)"),
    ),
    "router: a stop is over when it has begun": (
        Edit("models/_driver.py", r"await process\.stop\([^\n]*", "await trio.lowlevel.checkpoint()"),
    ),
    "router: what is left of a crash is not waited for": (
        Edit(
            "models/_driver.py",
            in_method("_stop", r"await process\.wait_stopped\(\)"),
            r"\1await trio.lowlevel.checkpoint()",
        ),
    ),
    "router: a crash is not told": (
        Edit("models/_driver.py", r"self\._happens\(self\._scheduler\.on_exit, [^\n]*", "pass"),
    ),
    "router: nobody rings": (Edit("models/_driver.py", r"self\._alarm_at = self\._alarm\.deadline = at", "pass"),),
    "router: a lease whose server has ended is not given back": (
        Edit(
            "models/lease.py",
            r"if self\.state is GRANTED:\n( +self\._driver\.ended\(self\))",
            r"if self.state is GRANTED and (self._life is None or self._life.error is None):\n\1",
        ),
    ),
    "router: whoever is asked again keeps the old process": (
        Edit("models/_driver.py", r"life\.identity = life\.identity or identity", "life.identity = identity - 1"),
    ),
    # ---- the life of a model's server ----
    "life: one that stops may start": (
        Edit(
            "core/lifecycle.py",
            r"( +)\(ModelState\.STOPPING, ModelEvent\.EXIT\): [^\n]*\n",
            r"\g<0>\1(ModelState.STOPPING, ModelEvent.START): ModelState.STARTING,\n",
        ),
    ),
    "life: a crash is never forgotten": (
        Edit("core/backoff.py", r"now - crashes\[0\] > self\._settings\.window", "now < crashes[0]"),
    ),
    "life: the pauses do not grow": (Edit("core/backoff.py", r"pause \*= settings\.factor", "pause *= 1"),),
    "life: one that never served is tried again": (
        Edit("core/backoff.py", r"restart = has_served and ", "restart = "),
    ),
}
"""Every mutant by name, with its edits."""
